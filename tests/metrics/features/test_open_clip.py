import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from latentdiff.config.errors import InputError
from latentdiff.metrics.features.base import CAPTION_CUT, POOL, TEXT
from latentdiff.metrics.features.open_clip import OpenClipFeatures

NAME = "latentdiff-features-tiny"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 28, "layers": 2, "width": 16, "head_width": 8, "patch_size": 14},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
CAPTIONS = ["a red circle", "a red circle, left of a blue box on a white star"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder with the configuration and the weights in both file formats, and open_clip's model and preprocessing."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "config").mkdir()
    (folder / "config" / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / "config")
    torch.manual_seed(0)
    clip, _, preprocess = open_clip.create_model_and_transforms(NAME)
    save_file(clip.state_dict(), folder / "w.safetensors")
    torch.save(clip.state_dict(), folder / "w.pt")
    return folder, clip.eval(), preprocess


@pytest.fixture(scope="module")
def ours(tiny):
    return build(tiny[0])


def build(folder, weights="w.safetensors", **options):
    return OpenClipFeatures(model=NAME, weights=str(folder / weights), model_config=str(folder / "config"), **options)


@pytest.mark.parametrize("shape", [(64, 64), (20, 20), (50, 37)])
def test_pool_is_encode_image_of_open_clips_own_preprocessing(tiny, ours, pictures, batch_of, shape):
    """Bit for bit, for images that are reduced, enlarged and cut."""
    _, clip, preprocess = tiny
    images = pictures(2, size=64)[:, :, : shape[0], : shape[1]]
    x = torch.stack([preprocess(Image.fromarray(np.asarray(row.permute(1, 2, 0)))) for row in images])
    with torch.no_grad():
        expected = clip.encode_image(x)
    found = ours(images, batch_of(images), [POOL])
    assert list(found) == [POOL]
    assert found[POOL].shape == (2, ours.layers[POOL])
    torch.testing.assert_close(found[POOL], expected, atol=1e-6, rtol=1e-5)  # frozen, attention takes another kernel
    assert (found[POOL].norm(dim=1) - 1).abs().min() > 0.01  # not normalised


def test_text_is_encode_text_behind_the_prefix_and_cuts_are_told(tiny, pictures, batch_of):
    folder, clip, _ = tiny
    images = pictures(2)
    prefixed = build(folder, prefix="photo of ")
    found = prefixed(images, batch_of(images, CAPTIONS), [TEXT, CAPTION_CUT])
    with torch.no_grad():
        expected = clip.encode_text(open_clip.get_tokenizer(NAME)([f"photo of {caption}" for caption in CAPTIONS]))
    torch.testing.assert_close(found[TEXT], expected, atol=1e-6, rtol=1e-5)
    assert found[CAPTION_CUT].tolist() == [[0.0], [1.0]]
    without = build(folder)(images, batch_of(images, CAPTIONS), [TEXT])
    assert not torch.allclose(without[TEXT], found[TEXT], atol=1e-3)


def test_an_image_does_not_see_its_neighbours(ours, pictures, batch_of):
    images = pictures(3)
    captions = [*CAPTIONS, "a box"]
    together = ours(images, batch_of(images, captions), [POOL, TEXT])
    alone = ours(images[1:2], batch_of(images[1:2], captions[1:2]), [POOL, TEXT])
    for name in (POOL, TEXT):
        assert torch.allclose(alone[name], together[name][1:2], atol=1e-5)


@pytest.mark.parametrize("captions", [None, ["a red circle", " "]])
def test_no_caption_is_an_input_error(ours, pictures, batch_of, captions):
    images = pictures(2)
    missing = "sample0" if captions is None else "sample1"
    with pytest.raises(InputError, match=f"sample '{missing}' has none; give data with captions"):
        ours(images, batch_of(images, captions), [TEXT])
    assert POOL in ours(images, batch_of(images, captions), [POOL])


def test_files_are_named_by_their_tensors_and_tags_by_their_name(tiny, monkeypatch):
    folder, clip, _ = tiny
    one, other = build(folder), build(folder, "w.pt")
    assert one.name == other.name == f"clip-{NAME}-sha256-{one.describe()['tensors_sha256'][:8]}"
    with torch.no_grad():
        changed = {name: tensor + 1e-3 for name, tensor in clip.state_dict().items()}
    save_file(changed, folder / "changed.safetensors")
    assert build(folder, "changed.safetensors").name != one.name
    monkeypatch.setattr("open_clip.factory.get_pretrained_cfg", lambda model, tag: {"mean": (0.5, 0.5, 0.5)})
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda model, tag: {"mean": (0.5, 0.5, 0.5)})
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *a, **k: str(folder / "w.safetensors"))
    tagged = OpenClipFeatures(model=NAME, weights="tag1", model_config=str(folder / "config"))
    assert tagged.name == f"clip-{NAME}-tag1"
    assert tagged.describe()["tensors_sha256"] == one.describe()["tensors_sha256"]
    assert tagged.describe()["preprocessing"]["mean"] == (0.5, 0.5, 0.5)  # the tag's own


def test_missing_weights_and_models_are_input_errors(tiny):
    with pytest.raises(InputError, match=r"(?s)features\.weights: could not load '.*nowhere\.pt.*path of a file"):
        build(tiny[0], "nowhere.pt")
    with pytest.raises(InputError, match=r"features\.model: open_clip has no model 'ViT-none'"):
        OpenClipFeatures(model="ViT-none")
    with pytest.raises(InputError, match=r"features\.model: 'openai' was trained with another activation"):
        _with_openai_tag(tiny[0])


def _with_openai_tag(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("open_clip.factory.get_pretrained_cfg", lambda model, tag: {"quick_gelu": True})
        patch.setattr("open_clip.factory.download_pretrained", lambda *a, **k: str(folder / "w.safetensors"))
        return OpenClipFeatures(model=NAME, weights="openai", model_config=str(folder / "config"))


def test_a_prefix_names_the_text_alone_and_is_told(tiny, ours):
    one, other = (build(tiny[0], prefix=prefix) for prefix in ("photo of ", "photo of"))
    assert one.name == other.name == ours.name == ours.text_name
    assert len({one.text_name, other.text_name, ours.text_name}) == 3
    assert one.text_name.startswith(f"{one.name}-prefix-")
    assert (one.describe()["prefix"], ours.describe()["prefix"]) == ("photo of ", "")


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, [torch.zeros(1)], torch.zeros(1), {"a": torch.zeros(1)}])
def test_files_without_the_weights_are_input_errors(tiny, tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"features\.weights: could not load '.*w\.pt' for open_clip's") as found:
        build(tiny[0], tmp_path / "w.pt")
    assert len(str(found.value)) < 1500


def test_numpy_s_files_are_input_errors(tiny, tmp_path):
    np.savez(tmp_path / "w.npz", a=np.zeros(2))
    with pytest.raises(InputError, match=r"features\.weights: could not load '.*w\.npz'"):
        build(tiny[0], tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", r"bad\.json' cannot be read as JSON"), ("3", "holds no mapping"), (None, "no folder with .json files")],
)
def test_configurations_at_fault_are_input_errors_and_do_not_stay(tiny, tmp_path, content, said):
    if content is not None:
        (tmp_path / "bad.json").write_text(content)
    with pytest.raises(InputError, match=rf"features\.model_config: '.*{said}"):
        OpenClipFeatures(model=NAME, weights=str(tiny[0] / "w.safetensors"), model_config=str(tmp_path))
    build(tiny[0])
