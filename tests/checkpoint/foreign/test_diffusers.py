"""diffusers' own models are the oracle: what is read from its folders computes what they do, and back."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentdiff.checkpoint.foreign import diffusers, reading
from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.config.errors import InputError

W = 32
CONFIGURATIONS = {
    "SD 1 f8": {"block_out_channels": (W, 2 * W, 4 * W, 4 * W), "layers_per_block": 2, "latent_channels": 4},
    "f4": {"block_out_channels": (W, 2 * W, 4 * W), "layers_per_block": 2, "latent_channels": 3},
    "f16 with attention": {
        "block_out_channels": (W, W, 2 * W, 2 * W, 4 * W),
        "layers_per_block": 2,
        "latent_channels": 16,
        "attention": (4,),
    },
    "attention on every level": {
        "block_out_channels": (W, 2 * W),
        "layers_per_block": 1,
        "latent_channels": 4,
        "attention": (0, 1),
    },
    "no quant convs, shift and scale": {
        "block_out_channels": (W, 2 * W, 4 * W, 4 * W),
        "layers_per_block": 2,
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    },
    "one image channel": {
        "block_out_channels": (W, 2 * W),
        "layers_per_block": 1,
        "latent_channels": 4,
        "in_channels": 1,
        "out_channels": 1,
    },
    "no attention, 8 groups": {
        "block_out_channels": (16, 48),
        "layers_per_block": 1,
        "latent_channels": 2,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
    },
}


def compare(model, peer, image, z, *, within: float) -> None:
    """Posterior and decoded image."""
    with torch.no_grad():
        posterior, theirs = model.encode(image), peer.encode(image).latent_dist
        for a, b in (
            (posterior.mean, theirs.mean),
            (posterior.logvar, theirs.logvar),
            (model.decode(z), peer.decode(z).sample),
        ):
            assert float((a - b).abs().max()) <= within


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_is_read_computes_what_diffusers_does(peer, draw, tmp_path, name):
    model = peer(**CONFIGURATIONS[name])
    model.save_pretrained(tmp_path)
    found = reading.read(tmp_path)
    own = found.autoencoder()
    image = draw(1, own.in_channels, 32, 48).clamp(-1, 1)
    z = draw(1, own.latent_channels, 32 // own.factor, 48 // own.factor)
    compare(own, model, image, z, within=1e-5)
    compare(own.double(), model.double(), image.double(), z.double(), within=1e-12)
    config = CONFIGURATIONS[name]
    scale, shift = config.get("scaling_factor", 0.18215), config.get("shift_factor", 0.0)
    assert found.statistics == Statistics((shift,) * own.latent_channels, (1 / scale,) * own.latent_channels)


@pytest.mark.slow
def test_parity_at_the_size_of_stable_diffusion(peer, draw, tmp_path):
    model = peer(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4)
    model.save_pretrained(tmp_path)
    own = reading.read(tmp_path).autoencoder()
    assert sum(p.numel() for p in own.parameters()) == 83_653_863
    compare(own, model, draw(1, 3, 64, 64).clamp(-1, 1), draw(1, 4, 8, 8), within=1e-5)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_diffusers_to_ours_to_diffusers_is_the_same_to_the_bit(peer, tmp_path, name):
    model = peer(**CONFIGURATIONS[name])
    model.save_pretrained(tmp_path / "theirs")
    found = reading.read(tmp_path / "theirs")
    diffusers.write(found.autoencoder(), found.statistics, tmp_path / "ours")
    written = load_file(tmp_path / "ours" / diffusers.WEIGHTS[0])
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(written[name], value) for name, value in model.state_dict().items())
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True, low_cpu_mem_usage=False)
    assert not any(info.values())
    before, after = ({k: v for k, v in m.config.items() if k[0] != "_"} for m in (model, again))
    assert after.pop("scaling_factor") == pytest.approx(before.pop("scaling_factor"), rel=1e-15)
    assert json.dumps(after) == json.dumps(before)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_factors": (2, 4)},
        {"mid_attention": False, "norm_groups": 16},
        {"quant_conv": False, "post_quant_conv": False, "in_channels": 4},
        {"codebook": 24, "embed_dim": 2},
    ],
)
def test_ours_to_diffusers_to_ours_is_the_same_to_the_bit(ours, tmp_path, changes):
    model = ours(**changes)
    statistics = Statistics((0.0,) * model.latent_channels, (2.5,) * model.latent_channels)
    assert diffusers.write(model, statistics, tmp_path / "vae", sample_size=64) == []
    found = reading.read(tmp_path / "vae")
    assert found.statistics == statistics
    again = found.autoencoder().state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_diffusers_computes_what_ours_does_with_a_codebook(ours, draw, tmp_path):
    model = ours(codebook=24)
    diffusers.write(model, Statistics((0.0,) * 3, (1.0,) * 3), tmp_path / "vqvae")
    theirs = pytest.importorskip("diffusers").VQModel.from_pretrained(tmp_path / "vqvae", low_cpu_mem_usage=False)
    image, z = draw(2, 3, 16, 16).clamp(-1, 1), 0.05 * draw(2, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(image).mean, theirs.encode(image).latents, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.decode(z), theirs.decode(z).sample, atol=1e-5, rtol=0)
    found = reading.read(tmp_path)  # as the folder of a pipeline
    assert found.architecture.codebook == 24


def test_statistics_that_differ_between_channels_are_kept_and_announced(ours, tmp_path):
    statistics = Statistics((0.1, -0.2, 0.0), (0.5, 2.0, 1.0 / 3.0))
    (note,) = diffusers.write(ours(), statistics, tmp_path / "vae")
    assert "latents_mean" in note
    config = json.loads((tmp_path / "vae/config.json").read_text())
    assert (config["latents_mean"], config["latents_std"]) == (list(statistics.mean), list(statistics.std))
    assert config["scaling_factor"] == 1.0
    assert reading.read(tmp_path / "vae").statistics == statistics
    loaded = pytest.importorskip("diffusers").AutoencoderKL.from_pretrained(tmp_path / "vae", low_cpu_mem_usage=False)
    assert tuple(loaded.config.latents_std) == statistics.std


@pytest.mark.parametrize(
    ("config", "mean", "std"),
    [
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, 0.25, 2.0),
        ({"latents_mean": [1.0] * 3, "latents_std": [3.0] * 3, "scaling_factor": 0.5}, 1.0, 6.0),
        ({"latents_mean": [1.0] * 3, "latents_std": [3.0] * 3, "scaling_factor": None}, 1.0, 3.0),
    ],
)
def test_how_the_scale_is_written(ours, tmp_path, config, mean, std):
    edit(ours, tmp_path, **config)
    assert reading.read(tmp_path / "vae").statistics == Statistics((mean,) * 3, (std,) * 3)


def test_a_folder_may_leave_the_scale_out(ours, tmp_path):
    edit(ours, tmp_path, scaling_factor=None)
    assert reading.read(tmp_path / "vae").statistics is None
    config = json.loads((tmp_path / "vae/config.json").read_text())
    del config["scaling_factor"]
    (tmp_path / "vae/config.json").write_text(json.dumps(config))
    assert reading.read(tmp_path / "vae").statistics.std[0] == pytest.approx(1 / 0.18215)  # diffusers' default


def test_attention_under_its_old_names(ours, tmp_path):
    """Stable Diffusion 1's folders; pickled, as they were then."""
    model = ours()
    diffusers.write(model, Statistics((0.0,) * 3, (1.0,) * 3), tmp_path / "vae")
    weights = load_file(tmp_path / "vae" / diffusers.WEIGHTS[0])
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        weights = {name.replace(f"attentions.0.{new}", f"attentions.0.{old}"): w for name, w in weights.items()}
    (tmp_path / "vae" / diffusers.WEIGHTS[0]).unlink()
    torch.save(weights, tmp_path / "vae" / "diffusion_pytorch_model.bin")
    again = reading.read(tmp_path / "vae").autoencoder().state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def edit(ours, folder, **config):
    """Writes one of ours to ``folder``/vae with these values in its configuration."""
    diffusers.write(ours(), Statistics((0.0,) * 3, (1.0,) * 3), folder / "vae")
    file = folder / "vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_class_name": "AutoencoderTiny"},
            "has the _class_name 'AutoencoderTiny'; expected .* AutoencoderKL or a VQModel",
        ),
        ({"latent_channels": 4}, r"do not fit its architecture: size mismatch .*\[8, 64, 3, 3\]"),
        ({"layers_per_block": 2}, r"48 missing \(.*, \.\.\.\); use a complete file"),
        ({"mid_block_add_attention": False}, r"20 surplus \(decoder\.mid_block\.attentions\.0"),
        ({"use_quant_conv": False}, r"2 surplus \(quant_conv\.bias, quant_conv\.weight\)"),
        ({"out_channels": 1}, "out_channels: expected 3, as in_channels, got 1"),
        ({"act_fn": "relu", "norm_type": "spatial"}, "act_fn: expected silu.*norm_type: expected group"),
        ({"block_out_channels": "wide"}, "block_out_channels: expected a list of widths, got 'wide'"),
        ({"block_out_channels": [32, 64, 80]}, r"norm_num_groups: expected a divisor of the widths \[32, 64, 80\]"),
        ({"block_out_channels": [64, 96, 96]}, "are no multiples of the first, 64"),
        ({"down_block_types": ["DownEncoderBlock2D"] * 2}, "down_block_types: expected 3 of DownEncoderBlock2D"),
        (
            {"up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 2},
            "up_block_types: expected the mirror image",
        ),
        ({"latents_std": [1.0] * 2}, "standard deviation of 2 latent channels, but its autoencoder has 3"),
        ({"latents_mean": 0.5}, "latents_mean: expected a list"),
        ({"down_block_types": [["a"], ["b"], ["c"]]}, "down_block_types: expected 3 of DownEncoderBlock2D"),
        ({"mid_block_add_attention": "false"}, "mid_block_add_attention: expected true or false, got 'false'"),
        ({"scaling_factor": 10**400}, "unusable"),
        ({"scaling_factor": 1e-300}, "unusable"),
        ({"latents_mean": [1.0] * 3, "shift_factor": 0.1}, "both latents_mean and shift_factor"),
        ({"scaling_factor": 0.0}, "unusable values"),
        ({"in_channels": "3"}, "in_channels: expected a whole number of at least 1, got '3'"),
    ],
)
def test_folders_that_do_not_fit_are_refused(ours, tmp_path, config, message):
    edit(ours, tmp_path, **config)
    with pytest.raises(InputError, match=message):
        reading.read(tmp_path / "vae").autoencoder()


def test_damaged_folders_are_refused(ours, tmp_path):
    edit(ours, tmp_path)
    weights = tmp_path / "vae" / diffusers.WEIGHTS[0]
    whole = load_file(weights)
    save_file(
        {name: value for name, value in whole.items() if name != "encoder.conv_in.bias"}
        | {"x": whole["encoder.conv_in.bias"]},
        weights,
    )
    with pytest.raises(InputError, match=r"1 missing \(encoder.conv_in.bias\); 1 surplus \(x\)"):
        reading.read(tmp_path / "vae")
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        reading.read(tmp_path / "vae")
    weights.unlink()
    with pytest.raises(InputError, match=r"no weights; expected one of diffusion_pytorch_model\.safetensors"):
        reading.read(tmp_path / "vae")
    (tmp_path / "vae/config.json").write_text("{")
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot be read|damaged|no readable JSON"):
        reading.read(tmp_path / "vae")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 2}, "folds 2x2 pixels into channels"),
        ({"channel_multipliers": (2, 4)}, "2 times as wide as its first convolution"),
        ({"embed_dim": 2}, "latents have 2 channels and its encoder writes 3"),
        ({"channels": 24}, "have 8 and 16 groups"),
        ({"codebook": 8, "quant_conv": False}, "VQModel always has quant_conv"),
    ],
)
def test_what_diffusers_does_not_know_is_not_written(ours, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        diffusers.write(ours(**changes), Statistics((0.0,) * 3, (1.0,) * 3), tmp_path / "vae")
    assert list(tmp_path.iterdir()) == []
