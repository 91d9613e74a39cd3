"""diffusers' own UNets are the oracle: what is written for it computes what ours does, and what is read back too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentdiff.checkpoint.foreign.backbones import load_backbone_weights
from latentdiff.checkpoint.foreign.unet import diffusers, reading
from latentdiff.checkpoint.foreign.unet.architecture import of_module
from latentdiff.config.errors import InputError
from latentdiff.nn.embeddings import timestep_embedding
from latentdiff.types import Conditioning


def opened(folder: Path):
    """diffusers' model in ``folder``, loaded strictly."""
    library = pytest.importorskip("diffusers")
    kind = getattr(library, json.loads((folder / "config.json").read_text())["_class_name"])
    model, info = kind.from_pretrained(folder, output_loading_info=True, low_cpu_mem_usage=False)
    assert not any(info.values())
    return model.eval()


def edit(model, folder: Path, **config) -> Path:
    """Writes one of ours to ``folder``/unet with these values in its configuration."""
    diffusers.write(model, folder / "unet")
    file = folder / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder / "unet"


def test_diffusers_computes_what_ours_does_and_what_it_writes_loads_here(unet, style, answers, tmp_path):
    model = unet(style)
    diffusers.write(model, tmp_path / "ours", sample_size=16)
    peer = opened(tmp_path / "ours")
    assert sum(p.numel() for p in peer.parameters()) == sum(p.numel() for p in model.parameters())
    ours, theirs = answers(model, peer)
    assert float((ours - theirs).abs().max()) <= 1e-5
    assert float(ours.abs().max()) > 0.01
    peer.save_pretrained(tmp_path / "theirs")
    found = reading.read(tmp_path / "theirs")
    assert found.architecture == of_module(model)
    again = unet(style, seed=2)
    load_backbone_weights(again, tmp_path / "theirs")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("style", ["SD 1", "ADM"])
def test_parity_in_float64_shows_that_only_rounding_differs(unet, answers, tmp_path, style):
    model = unet(style)
    diffusers.write(model, tmp_path / "unet")
    ours, theirs = answers(model.double(), opened(tmp_path / "unet").double(), torch.float64)
    # both compute the embedding of the time in float32
    assert float((ours - theirs).abs().max()) <= 1e-6


def test_what_diffusers_made_by_itself_is_read(answers, unet, tmp_path):
    """Its defaults, its order of keys; in the folder of a pipeline."""
    library = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    peer = library.UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
    ).eval()
    peer.save_pretrained(tmp_path / "unet")
    model = unet(channel_multipliers=(1, 2), attention_factors=(2,), heads=None, head_width=16)
    for path in (tmp_path, tmp_path / "unet", tmp_path / "unet/diffusion_pytorch_model.safetensors"):
        load_backbone_weights(model, path)
        ours, theirs = answers(model, peer)
        assert float((ours - theirs).abs().max()) <= 1e-5


def test_the_vector_of_sdxl(unet, draw, tmp_path):
    """Text and sizes, which diffusers joins by itself (addition_embed_type: text_time)."""
    library = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    peer = library.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=[1, 2],
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
    ).eval()
    peer.save_pretrained(tmp_path)
    model = unet("vector, depths", channel_multipliers=(1, 2), attention_factors=(2,), transformer_depth=(1, 2))
    with pytest.raises(InputError, match="vector_dim 32 there, 20 here"):
        load_backbone_weights(model, tmp_path)
    model = unet(
        "vector, depths", channel_multipliers=(1, 2), attention_factors=(2,), transformer_depth=(1, 2), vector_dim=32
    )
    load_backbone_weights(model, tmp_path)
    x, t, tokens, pooled = draw(2, 4, 8, 8), torch.tensor([3, 700]), draw(2, 5, 24), draw(2, 8, seed=1)
    sizes = torch.arange(12.0).view(2, 6) * 100
    vector = torch.cat([pooled, timestep_embedding(sizes.flatten(), 4).view(2, -1)], dim=1)
    with torch.no_grad():
        ours = model(x, t, Conditioning(tokens=tokens, vector=vector))
        theirs = peer(x, t, tokens, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample
    assert float((ours - theirs).abs().max()) <= 1e-5


def test_attention_under_its_old_names(unet, tmp_path):
    """The folders of LDM's unconditional models; pickled, as they were then."""
    model = unet("no context")
    diffusers.write(model, tmp_path)
    weights = load_file(tmp_path / diffusers.WEIGHTS[0])
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        weights = {name.replace(f".{new}.", f".{old}."): value for name, value in weights.items()}
    (tmp_path / diffusers.WEIGHTS[0]).unlink()
    torch.save(weights, tmp_path / "diffusion_pytorch_model.bin")
    again = unet("no context", seed=2)
    load_backbone_weights(again, tmp_path)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("style", "config", "message"),
    [
        ("SD 1", {"_class_name": "UNet1DModel"}, "has the _class_name 'UNet1DModel'; expected .* a UNet2DConditionMo"),
        (
            "SD 1",
            {"layers_per_block": 3},
            r"170 missing \(down_blocks.0.attentions.2.norm.bias, .*\.\.\.\); use a compl",
        ),
        ("SD 1", {"layers_per_block": 1}, r"1\d\d surplus \(.*, \.\.\.\)"),
        ("SD 1", {"attention_head_dim": 8}, r"heads \(8, 8, 8\) there, \(4, 4, 4\) here"),
        ("SD 1", {"attention_head_dim": [4, 4]}, "attention_head_dim: expected a whole number .* or 3 of them"),
        ("SD 1", {"cross_attention_dim": 32}, "context_dim 32 there, 24 here"),
        ("SD 1", {"norm_num_groups": 16}, "norm_groups 16 there, 32 here"),
        ("SD 1", {"norm_num_groups": 24}, r"norm_num_groups: expected a divisor of the widths \[32, 64, 64\], got 24"),
        ("SD 1", {"block_out_channels": [32, 64, 80], "norm_num_groups": 16}, "are no multiples of the first, 32"),
        ("SD 1", {"block_out_channels": "wide"}, "block_out_channels: expected a list of widths, got 'wide'"),
        ("SD 1", {"class_embed_type": "simple_projection"}, "class_embed_type: expected projection, or none"),
        ("SD 1", {"addition_embed_type": "image"}, "addition_embed_type: expected text_time, or none, got 'image'"),
        ("SD 1", {"flip_sin_to_cos": False, "freq_shift": 1}, "flip_sin_to_cos: expected True.*freq_shift: expected 0"),
        ("SD 1", {"down_block_types": ["KDownBlock2D"] * 3}, "down_block_types: expected 3 of CrossAttnDownBlock2D"),
        ("SD 1", {"up_block_types": ["UpBlock2D"] * 3}, "up_block_types: expected the mirror image"),
        ("SD 1", {"only_cross_attention": [False, True, False]}, "only_cross_attention: expected False"),
        ("SD 1", {"time_embedding_dim": 64}, "time_embedding_dim: expected 4 times the first"),
        ("SD 1", {"class_embed_type": "projection"}, "projection_class_embeddings_input_dim: expected a whole number"),
        ("vector, depths", {"addition_embed_type": "text_time"}, "several embeddings beside the time's"),
        ("ADM", {"downsample_type": "conv"}, "partly with convolutions, partly with residual blocks"),
        ("ADM", {"attn_norm_num_groups": None}, "attn_norm_num_groups: expected 32, as norm_num_groups, got None"),
        ("ADM", {"add_attention": False}, "add_attention: expected True"),
        ("no context", {"attention_head_dim": 32}, r"heads \(0, 2, 3\) there, \(0, 4, 6\) here"),
    ],
)
def test_folders_that_do_not_fit_are_refused(unet, tmp_path, style, config, message):
    model = unet(style)
    folder = edit(model, tmp_path, **config)
    with pytest.raises(InputError, match=message):
        load_backbone_weights(model, folder)


def test_damaged_folders_are_refused(unet, tmp_path):
    model = unet("no context")
    folder = edit(model, tmp_path)
    weights = folder / diffusers.WEIGHTS[0]
    whole = load_file(weights)
    save_file({n: v for n, v in whole.items() if n != "conv_in.bias"} | {"x": torch.zeros(1)}, weights)
    with pytest.raises(InputError, match=r"not those of the UNet .* 1 missing \(conv_in.bias\); 1 surplus \(x\)"):
        load_backbone_weights(model, folder)
    query = "mid_block.attentions.0.to_q.weight"
    save_file(whole | {query: torch.zeros(10, 96)}, weights)
    with pytest.raises(InputError, match=r"has not the heads of its config\.json"):
        load_backbone_weights(model, folder)
    save_file(whole | {"conv_in.weight": torch.zeros(32, 5, 3, 3)}, weights)
    with pytest.raises(InputError, match=r"input_blocks\.0\.0\.weight has \(32, 5, 3, 3\) there, \(32, 4, 3, 3\) here"):
        load_backbone_weights(model, folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"no weights; expected one of diffusion_pytorch_model\.safetensors"):
        load_backbone_weights(model, folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="no readable JSON"):
        load_backbone_weights(model, folder)


@pytest.mark.parametrize(
    ("style", "changes", "message"),
    [
        ("SD 1", {"patch": 2}, "folds 2x2 positions into channels"),
        ("SD 1", {"position_embedding": True}, "adds an embedding of the positions"),
        ("SD 1", {"channel_multipliers": (2, 2, 4)}, "2 times as wide as its first convolution"),
        ("SD 1", {"channels": 24}, "have 8 and 16 and 32 groups"),
        ("SD 1", {"resblock_updown": True}, "halve and double with convolutions"),
        ("no context", {"vector_dim": 5}, r"reads no vector \(vector_dim\)"),
        ("no context", {"heads": 4, "head_width": None}, r"one width of heads for all levels, .* \(0, 16, 24\)"),
    ],
)
def test_what_diffusers_does_not_know_is_not_written(unet, tmp_path, style, changes, message):
    with pytest.raises(InputError, match=message):
        diffusers.write(unet(style, **changes), tmp_path / "unet")
    assert list(tmp_path.iterdir()) == []


def test_the_reader_of_a_vector_is_told_where_it_goes(unet, tmp_path):
    (note,) = diffusers.write(unet("vector, depths"), tmp_path / "unet")
    assert "class_labels" in note
    assert diffusers.write(unet(), tmp_path / "plain") == []
