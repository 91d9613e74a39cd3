"""CLIP's text encoder from one layout to another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentdiff.checkpoint.foreign.text import hf, open_clip, single_file, tokenizer
from latentdiff.checkpoint.foreign.text.architecture import ForeignText, infer, of_conditioner
from latentdiff.checkpoint.foreign.text.names import from_hf, own_names, to_hf
from latentdiff.checkpoint.foreign.weights import open_weights
from latentdiff.conditioning.open_clip_text import OpenClipText
from latentdiff.config.errors import InputError
from latentdiff.types import Batch

WIDTH, HIDDEN, LENGTH = 16, 48, 12
BATCH = Batch(keys=["0", "1"], caption=["a red circle", ""])


def weights(layers: int, *, vocabulary: int = 49408, projection: bool = False) -> dict[str, torch.Tensor]:
    """Random, under open_clip's names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "token_embedding.weight": (vocabulary, WIDTH),
        "positional_embedding": (LENGTH, WIDTH),
        "text_projection": (WIDTH, 8),
        "in_proj_weight": (3 * WIDTH, WIDTH),
        "in_proj_bias": (3 * WIDTH,),
        "out_proj.weight": (WIDTH, WIDTH),
        "c_fc.weight": (HIDDEN, WIDTH),
        "c_fc.bias": (HIDDEN,),
        "c_proj.weight": (WIDTH, HIDDEN),
    }
    found = {}
    for name in own_names(layers, projection=projection):
        shape = next((size for end, size in shapes.items() if name.endswith(end)), (WIDTH,))
        found[name] = 0.3 * torch.randn(shape, generator=generator)
    return found


def text(layers: int = 3, block: int = 1, *, quick: bool = True, projection: bool = False) -> ForeignText:
    found = weights(layers, projection=projection)
    architecture = infer(found, Path("file"), heads=4, quick_gelu=quick)
    return ForeignText(Path("file"), architecture, found, block, pad_with_end=quick)


def conditioner(given: ForeignText, folder: Path) -> OpenClipText:
    folder.mkdir()
    name = open_clip.write(given, folder)
    return OpenClipText(
        model=name,
        weights=str(folder / open_clip.WEIGHTS),
        model_config=str(folder),
        block=given.block,
        pad_with_end=given.pad_with_end,
    )


def test_sizes_are_read_from_the_weights() -> None:
    found = text(projection=True).architecture
    assert (found.width, found.layers, found.heads, found.hidden) == (WIDTH, 3, 4, HIDDEN)
    assert (found.context_length, found.vocabulary, found.projection) == (LENGTH, 49408, 8)


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1280, 20)])
def test_heads_of_published_widths_are_known(width: int, heads: int) -> None:
    found = {name: torch.empty(width, width, device="meta") for name in own_names(1, projection=False)}
    found["token_embedding.weight"] = torch.empty(49408, width, device="meta")
    assert infer(found, Path("file"), heads=None, quick_gelu=True).heads == heads


def test_the_published_encoder_is_open_clips_own() -> None:
    """ViT-L/14's numbers, as open_clip's list of models has them."""
    clip = pytest.importorskip("open_clip")
    with torch.device("meta"):
        model = clip.CLIP(**clip.get_model_config("ViT-L-14-quickgelu"))
    found = {k: v for k, v in model.state_dict().items() if not k.startswith(("visual.", "logit_"))}
    made = open_clip.model_config(infer(found, Path("file"), heads=None, quick_gelu=True))
    own = clip.get_model_config("ViT-L-14-quickgelu")
    assert own["text_cfg"].items() <= made["text_cfg"].items()
    assert (made["quick_gelu"], made["embed_dim"]) == (True, own["embed_dim"])


def test_names_of_transformers_and_back() -> None:
    given = weights(2, projection=False)
    again = from_hf(to_hf(given, 2), 2)
    assert given.keys() == again.keys()
    assert all(torch.equal(again[name], value) for name, value in given.items())


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("quick", [False, True])
def test_an_encoder_of_ours_is_what_was_written(tmp_path: Path, quick: bool, projection: bool) -> None:
    given = text(quick=quick, projection=projection)
    again = of_conditioner(conditioner(given, tmp_path / "clip"), Path("file"))
    assert (again.architecture, again.block, again.pad_with_end) == (given.architecture, 1, quick)
    assert all(torch.equal(again.weights[name], value) for name, value in given.weights.items())


@pytest.mark.parametrize("block", [1, 2, 3])
def test_blocks_behind_the_one_that_is_read_change_nothing(tmp_path: Path, block: int) -> None:
    given = text(block=block)
    states = conditioner(given, tmp_path / "as it is")(BATCH).tokens
    cut, longer = given.until_read(), given.with_one_behind()
    assert (cut.architecture.layers, longer.architecture.layers) == (4 - block, 5 - block)
    torch.testing.assert_close(conditioner(cut, tmp_path / "cut")(BATCH).tokens, states)
    torch.testing.assert_close(conditioner(longer, tmp_path / "longer")(BATCH).tokens, states)


@pytest.mark.parametrize(("quick", "block"), [(True, 1), (True, 2), (False, 1), (False, 2)])
def test_within_a_single_file_and_back(tmp_path: Path, quick: bool, block: int) -> None:
    given = text(quick=quick, block=block, projection=not quick)
    states = conditioner(given, tmp_path / "before")(BATCH).tokens
    made = single_file.contents(given)
    made.write(tmp_path / "sd.safetensors")
    again = single_file.read(open_weights(tmp_path / "sd.safetensors"))
    assert again.block == (1 if quick else 2)
    torch.testing.assert_close(conditioner(again, tmp_path / "after")(BATCH).tokens, states)
    without = {"model.safetensors": {}, "constants.safetensors": {}}
    prefix = single_file.HF + "text_model." if quick else single_file.OPEN_CLIP
    constant = "embeddings.position_ids" if quick else "logit_scale"
    without["constants.safetensors"] = {prefix + constant: torch.zeros(1)}
    for name, more in without.items():
        save_file(made.tensors | more, tmp_path / name)
        with pytest.raises(InputError, match=r"width 16, which is none of the published .* give --text-heads N"):
            single_file.read(open_weights(tmp_path / name))
        assert single_file.read(open_weights(tmp_path / name), heads=4).architecture == again.architecture


def test_another_padding_than_the_layouts_is_said() -> None:
    given = text(quick=True)
    assert len(single_file.contents(given).notes) == 1
    other = ForeignText(given.path, given.architecture, given.weights, 1, pad_with_end=False)
    assert "filled up with token 0, readers of such files take the end token" in single_file.contents(other).notes[1]


def test_faults_of_an_encoder_are_told(tmp_path: Path) -> None:
    added = weights(1, vocabulary=49410)
    with pytest.raises(InputError, match="knows 49410 tokens"):
        infer(added, Path("file"), heads=4, quick_gelu=True)
    with pytest.raises(InputError, match="5 heads do not divide"):
        infer(weights(1), Path("file"), heads=5, quick_gelu=True)
    lacking = {k: v for k, v in weights(1).items() if k != "ln_final.bias"}
    with pytest.raises(InputError, match=r"1 missing \(ln_final.bias\)"):
        infer(lacking, Path("file"), heads=4, quick_gelu=True)
    save_file(single_file.contents(text()).tensors, tmp_path / "f.safetensors", {"text_heads": "many"})
    with pytest.raises(InputError, match="should be a number of heads"):
        single_file.read(open_weights(tmp_path / "f.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "only CLIP's text encoder"),
        ({"hidden_act": "relu"}, "hidden_act: expected quick_gelu or gelu"),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected a whole number"),
        ({"intermediate_size": 64}, "intermediate_size 64, the weights have 48"),
        ({"num_hidden_layers": 4}, "missing"),
        ({"num_hidden_layers": 2}, "surplus"),
    ],
)
def test_faults_of_a_folder_are_told(tmp_path: Path, changes: dict, message: str) -> None:
    hf.write(text(), tmp_path)
    assert hf.read(tmp_path, pad_with_end=True).architecture == text().architecture
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=message):
        hf.read(tmp_path, pad_with_end=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="but no weights"):
        hf.read(tmp_path, pad_with_end=True)


def test_the_tokenizer_says_its_padding(tmp_path: Path) -> None:
    for pad in (True, False):
        tokenizer.write(tmp_path, pad_with_end=pad, context_length=LENGTH)
        assert tokenizer.pads_with_end(tmp_path) is pad
    (tmp_path / "tokenizer_config.json").unlink()
    assert tokenizer.pads_with_end(tmp_path) is False
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "<|endoftext|>"}}')
    assert tokenizer.pads_with_end(tmp_path) is True
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "a</w>"}')
    with pytest.raises(InputError, match="pads with 'a</w>'"):
        tokenizer.pads_with_end(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(InputError, match="another vocabulary than CLIP's: 1 tokens, 1 of them"):
        tokenizer.pads_with_end(tmp_path)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(InputError, match="holds no tokenizer"):
        tokenizer.pads_with_end(tmp_path)
