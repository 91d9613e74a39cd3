import pytest
import torch
import yaml

from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign import diffusers
from latentdiff.checkpoint.foreign.statistics import Statistics
from latentdiff.checkpoint.models import first_stage_record, load_codec, load_diffusion, recorded_statistics
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.training.ema import Ema
from latentdiff.types import Batch

COUNTERS = {"batches_seen": 1, "images_seen": 2}
AUTOENCODER = {
    "_target_": "latentdiff.models.autoencoder.autoencoder.Autoencoder",
    "bottleneck": {"_target_": "latentdiff.models.autoencoder.bottlenecks.kl.KL"},
    "channels": 4,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "latent_channels": 2,
    "norm_groups": 2,
}
DENOISER = {
    "_target_": "latentdiff.diffusion.denoiser.Denoiser",
    "backbone": {
        "_target_": "latentdiff.models.backbones.unet.UNet",
        "in_channels": 2,
        "out_channels": 2,
        "channels": 8,
        "channel_multipliers": [1],
        "num_res_blocks": 1,
        "attention_factors": [],
        "context_dim": 4,
        "heads": 2,
        "norm_groups": 2,
    },
    "path": {"_target_": "latentdiff.diffusion.path.RectifiedFlow"},
    "parameterization": {"_target_": "latentdiff.diffusion.parameterization.Velocity"},
}
CONDITIONER = {
    "_target_": "latentdiff.conditioning.text_transformer.TextTransformerConditioner",
    "transformer": {
        "_target_": "latentdiff.models.text_transformer.TextTransformer",
        "width": 4,
        "layers": 1,
        "heads": 2,
        "max_length": 12,
    },
}
STATISTICS = {"latent_mean": torch.tensor([0.1, -0.2]), "latent_std": torch.tensor([0.5, 2.0])}


def randomised(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module


def average(module):
    """What a training module's averaged weights are called in ``ema.safetensors``."""
    ema = Ema(module, decay=0.9)
    return {f"ema.{name}": value for name, value in ema.state_dict().items()}


@pytest.fixture
def first_stage(tmp_path):
    """Saves a stage-one checkpoint, whose average differs from its weights, and returns its path and the average."""

    def make(name="ae", seed=1, statistics=STATISTICS, config=AUTOENCODER):
        torch.manual_seed(seed)
        trained = randomised(build(AUTOENCODER), seed)
        weights = {f"autoencoder.{k}": v for k, v in trained.state_dict().items()} | statistics
        averaged = randomised(build(AUTOENCODER), seed + 100)
        store.save(
            tmp_path / name,
            kind="autoencoder",
            model=weights,
            ema=average(averaged),
            config=yaml.safe_dump({"autoencoder": config}),
            counters=COUNTERS,
        )
        return tmp_path / name, averaged.eval()

    return make


@pytest.fixture
def second_stage(tmp_path):
    """Saves a stage-two checkpoint trained on ``first`` and returns its path and the averaged parts."""

    def make(first, name="ldm", denoiser=DENOISER, named=True, statistics=None):
        torch.manual_seed(3)
        parts = {"denoiser": build(DENOISER), "conditioner": build(CONDITIONER)}
        averaged = randomised(torch.nn.ModuleDict(parts), 5)
        store.save(
            tmp_path / name,
            kind="diffusion",
            model={f"model.{k}": torch.zeros_like(v) for k, v in averaged.state_dict().items()},
            ema=average(averaged),
            config=yaml.safe_dump({"task": {"denoiser": denoiser, "conditioner": CONDITIONER}}),
            counters=COUNTERS,
            first_stage=first_stage_record(first, statistics) if named else None,
        )
        return tmp_path / name, averaged.eval()

    return make


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_codec_computes_what_the_averaged_autoencoder_does(first_stage):
    """With the statistics of the checkpoint, up to rounding: whitening may be one operation or two."""
    path, averaged = first_stage()
    codec = load_codec(path)
    image = noise(2, 3, 8, 8).clamp(-1, 1)
    with torch.no_grad():
        z = codec.encode(image)
        mean, std = (STATISTICS[k].view(2, 1, 1) for k in ("latent_mean", "latent_std"))
        torch.testing.assert_close(z, (averaged.encode(image).mean - mean) / std, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(codec.decode(z), averaged.decode(z * std + mean).clamp(-1, 1), rtol=1e-6, atol=1e-6)
    assert not any(p.requires_grad for p in codec.parameters())
    assert not any(m.training for m in codec.train().modules())


def test_diffusion_model_computes_what_the_averaged_one_does(first_stage, second_stage):
    first, autoencoder = first_stage()
    path, averaged = second_stage(first)
    loaded = load_diffusion(path)
    x, t = noise(2, 2, 4, 4), torch.tensor([0.2, 0.7])
    batch = Batch(keys=["a", "b"], caption=["a red circle", ""])
    with torch.no_grad():
        ours, theirs = loaded.conditioner(batch), averaged["conditioner"](batch)
        assert torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(loaded.denoiser(x, t, ours), averaged["denoiser"](x, t, theirs))
        codec = LatentCodec(autoencoder=autoencoder, mean=STATISTICS["latent_mean"], std=STATISTICS["latent_std"])
        assert torch.equal(loaded.codec.decode(x), codec.decode(x))
    parts = (loaded.denoiser, loaded.conditioner, loaded.codec)
    assert not any(p.requires_grad for part in parts for p in part.parameters())
    assert not any(m.training for part in parts for m in part.modules())
    assert (loaded.path, loaded.manifest.kind) == (path, "diffusion")
    assert loaded.config.task.denoiser.backbone.channels == 8


def test_run_directories_are_found(first_stage, second_stage):
    first, _ = first_stage("ae_run/checkpoints/last")
    path, _ = second_stage(first, "ldm_run/checkpoints/last")
    assert load_codec(first.parent.parent).channels == 2
    assert load_diffusion(path.parent.parent, first_stage=str(first.parent.parent)).path == path


def test_each_kind_is_refused_for_the_other(first_stage, second_stage):
    first, _ = first_stage()
    second, _ = second_stage(first)
    with pytest.raises(InputError, match=r"of kind diffusion \(stage two\), one of kind autoencoder"):
        load_codec(second)
    with pytest.raises(InputError, match=r"of kind autoencoder \(stage one\), one of kind diffusion"):
        load_diffusion(first)
    with pytest.raises(InputError, match=f"trained on the first stage {store.digest(first)[:12]}"):
        load_diffusion(second, first_stage=str(second))


def test_another_first_stage_is_refused(first_stage, second_stage):
    first, _ = first_stage()
    other, _ = first_stage("other", seed=2)
    second, _ = second_stage(first)
    found, wanted = store.digest(other)[:12], store.digest(first)[:12]
    with pytest.raises(InputError, match=f"trained on the first stage {wanted}, '.*other' is {found}; name the right"):
        load_diffusion(second, first_stage=str(other))


def test_other_latent_statistics_are_another_first_stage(first_stage, second_stage):
    first, _ = first_stage()
    shifted = STATISTICS | {"latent_mean": torch.tensor([0.1, -0.3])}
    other, _ = first_stage("other", statistics=shifted)
    second, _ = second_stage(first)
    with pytest.raises(InputError, match="trained on the first stage"):
        load_diffusion(second, first_stage=str(other))


def test_a_first_stage_that_moved_must_be_named(first_stage, second_stage, tmp_path):
    first, _ = first_stage()
    second, _ = second_stage(first)
    first.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"is not at '.*ae'; name its present place with first_stage\.checkpoint=PATH"):
        load_diffusion(second)
    assert load_diffusion(second, first_stage=str(tmp_path / "moved")).codec.channels == 2


def test_a_checkpoint_that_names_no_first_stage_is_refused(first_stage, second_stage):
    first, _ = first_stage()
    second, _ = second_stage(first, named=False)
    with pytest.raises(InputError, match="does not say which first stage"):
        load_diffusion(second, first_stage=str(first))


def test_channels_that_do_not_fit_are_refused(first_stage, second_stage):
    wider, _ = first_stage("wider", config=AUTOENCODER | {"latent_channels": 3})
    with pytest.raises(InputError, match=r"(?s)do not fit its own configuration: .*size mismatch"):
        load_codec(wider)
    longer, _ = first_stage("longer", statistics={"latent_mean": torch.zeros(3), "latent_std": torch.ones(3)})
    with pytest.raises(InputError, match="one value per latent channel"):
        load_codec(longer)
    first, _ = first_stage()
    backbone = DENOISER["backbone"] | {"in_channels": 3, "out_channels": 3}
    second, _ = second_stage(first, denoiser=DENOISER | {"backbone": backbone})
    with pytest.raises(InputError, match=r"(?s)do not fit its own configuration: .*size mismatch"):
        load_diffusion(second)


def test_damage_in_either_stage_is_found(first_stage, second_stage):
    first, _ = first_stage()
    second, _ = second_stage(first)
    for folder in (first, second):
        file = folder / "ema.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(InputError, match=r"is damaged \(ema\.safetensors: sha256"):
            load_diffusion(second)
        file.write_bytes(whole)
    load_diffusion(second)


def test_a_configuration_cannot_call_what_is_not_allowed(first_stage):
    path, _ = first_stage(config={"_target_": "os.system", "command": "true"})
    with pytest.raises(InputError, match=r"os\.system"):
        load_codec(path)


FOREIGN = AUTOENCODER | {"channels": 32, "norm_groups": 32}


@pytest.fixture
def foreign(tmp_path):
    """Writes an autoencoder as another program would: a diffusers folder with a scale, or a file without one."""

    def make(name="vae", seed=1):
        torch.manual_seed(seed)
        autoencoder = randomised(build(FOREIGN), seed).eval()
        if name.endswith(".ckpt"):
            torch.save({"state_dict": autoencoder.state_dict()}, tmp_path / name)
        else:
            diffusers.write(autoencoder, Statistics((0.25, 0.25), (2.0, 2.0)), tmp_path / name)
        return tmp_path / name, autoencoder

    return make


def test_a_foreign_first_stage_is_a_codec_too(foreign):
    path, autoencoder = foreign()
    image = noise(2, 3, 8, 8).clamp(-1, 1)
    with torch.no_grad():
        raw = autoencoder.encode(image).mean
        for given, mean, std in ((None, 0.25, 2.0), (Statistics((1.0, 2.0), (0.5, 0.5)), [1.0, 2.0], 0.5)):
            codec = load_codec(path, statistics=given)
            expected = (raw - torch.tensor(mean).view(-1, 1, 1)) / std
            assert torch.equal(codec.encode(image), expected)
    assert not any(p.requires_grad for p in codec.parameters())
    with pytest.raises(InputError, match=r"does not say how its latents are scaled; give first_stage\.scale=NUMBER"):
        load_codec(foreign("ae.ckpt")[0])


@pytest.mark.parametrize("name", ["vae", "ae.ckpt"])
def test_stage_two_finds_its_foreign_first_stage_again(foreign, second_stage, tmp_path, name):
    """With the statistics of training, whatever the folder says by now."""
    path, autoencoder = foreign(name)
    statistics = Statistics((0.5, -0.5), (4.0, 2.0))
    second, _ = second_stage(path, statistics=statistics)
    record = store.read_manifest(second).first_stage
    assert record["path"] == str(path)
    assert recorded_statistics(record) == statistics
    x = noise(1, 2, 4, 4)
    with torch.no_grad():
        decoded = autoencoder.decode(
            x * torch.tensor([4.0, 2.0]).view(2, 1, 1) + torch.tensor([0.5, -0.5]).view(2, 1, 1)
        )
        assert torch.equal(load_diffusion(second).codec.decode(x), decoded.clamp(-1, 1))
        path.rename(tmp_path / f"moved-{name}")
        with pytest.raises(InputError, match=r"name its present place with first_stage\.checkpoint=PATH"):
            load_diffusion(second)
        moved = load_diffusion(second, first_stage=str(tmp_path / f"moved-{name}"))
        assert torch.equal(moved.codec.decode(x), decoded.clamp(-1, 1))


def test_another_foreign_first_stage_is_refused(foreign, first_stage, second_stage):
    path, _ = foreign()
    second, _ = second_stage(path)
    for other in (foreign("other", seed=2)[0], first_stage()[0]):
        with pytest.raises(InputError, match=f"trained on the first stage .*, '{other}' is [0-9a-f]{{12}}; name the"):
            load_diffusion(second, first_stage=str(other))
    native, _ = second_stage(first_stage("native")[0], name="ldm2")
    with pytest.raises(InputError, match="trained on the first stage"):
        load_diffusion(native, first_stage=str(path))
