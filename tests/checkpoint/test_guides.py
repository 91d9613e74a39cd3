from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

from latentdiff.checkpoint import store
from latentdiff.checkpoint.guides import CheckpointAutoguidance, CheckpointClassifierGuidance
from latentdiff.checkpoint.models import load_classifier, load_denoiser
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.guidance import ClassifierFree
from latentdiff.diffusion.parameterization import Velocity
from latentdiff.diffusion.path import RectifiedFlow, ScaledLinearDDPM
from latentdiff.training.ema import Ema
from latentdiff.types import Batch, Conditions

CLASSIFIER = {
    "_target_": "latentdiff.models.classifier.NoisyClassifier",
    "network": {
        "_target_": "latentdiff.models.classifier.EncoderClassifier",
        "in_channels": 2,
        "classes": 3,
        "channels": 4,
        "channel_multipliers": [1, 1],
        "num_res_blocks": 1,
        "attention_factors": [],
        "head_width": 4,
    },
    "path": {"_target_": "latentdiff.diffusion.path.RectifiedFlow"},
}
DENOISER = {
    "_target_": "latentdiff.diffusion.denoiser.Denoiser",
    "backbone": {
        "_target_": "latentdiff.models.backbones.unet.UNet",
        "in_channels": 2,
        "out_channels": 2,
        "channels": 4,
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
        "max_length": 8,
    },
}
FIRST = {"path": "first", "hash": "a" * 64}
LATENT = {"channels": 2, "factor": 4}


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of a kind, whose average differs from its weights: its path and the average."""

    def save(kind, task, averaged, **changes):
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for p in averaged.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
        options = {"first_stage": FIRST, "latent": LATENT} | changes
        store.save(
            tmp_path / kind,
            kind=kind,
            model={f"model.{k}": torch.zeros_like(v) for k, v in averaged.state_dict().items()},
            ema={f"ema.{k}": v for k, v in Ema(averaged, decay=0.9).state_dict().items()},
            config=yaml.safe_dump({"task": task}),
            counters={"batches_seen": 1, "images_seen": 2},
            **options,
        )
        return str(tmp_path / kind), averaged.eval()

    return save


@pytest.fixture
def classifier(saved):
    return saved("classifier", {"classifier": CLASSIFIER}, build(CLASSIFIER))


@pytest.fixture
def guide(saved):
    parts = {"denoiser": build(DENOISER), "conditioner": build(CONDITIONER)}
    return saved("diffusion", {"denoiser": DENOISER, "conditioner": CONDITIONER}, torch.nn.ModuleDict(parts))


def model(path=None, **changes):
    """As much of a loaded model as a guide is compared with."""
    manifest = store.Manifest(kind="diffusion", counters={}, files={}, first_stage=FIRST, latent=LATENT)
    denoiser = Denoiser(backbone=torch.nn.Identity(), path=path or RectifiedFlow(), parameterization=Velocity())
    return SimpleNamespace(path="model", manifest=replace(manifest, **changes), denoiser=denoiser)


X = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.3, 0.8])


def test_the_classifier_is_the_averaged_one_and_frozen(classifier):
    path, averaged = classifier
    loaded = load_classifier(path)
    assert torch.equal(loaded.classifier(X, T), averaged(X, T))
    assert not any(p.requires_grad for p in loaded.classifier.parameters())
    assert not loaded.classifier.training
    guidance = CheckpointClassifierGuidance(checkpoint=path, scale=2.0, base=ClassifierFree(scale=3.0))
    assert guidance.needs_null
    assert guidance.describe() == {
        "name": "ClassifierGuidance",
        "scale": 2.0,
        "base": {"name": "ClassifierFree", "scale": 3.0},
        "checkpoint": path,
        "digest": store.digest(path),
    }


def test_the_guide_needs_no_first_stage_and_reads_its_own_conditioner(guide):
    path, averaged = guide
    loaded = load_denoiser(path)
    batch = Batch(keys=["a", "b"], caption=["a red circle", "a box"])
    with torch.no_grad():
        own = averaged["conditioner"](batch)
        assert torch.equal(loaded.conditioner(batch).tokens, own.tokens)
        guidance = CheckpointAutoguidance(checkpoint=path, scale=0.0)
        assert guidance.conditioner is not None
        got = guidance(averaged["denoiser"], X, T, Conditions(own, own, guide=own))
        torch.testing.assert_close(got, averaged["denoiser"].denoise(X, T, own))
    assert guidance.describe()["digest"] == store.digest(path)


@pytest.mark.parametrize("kind", ["classifier", "guide"])
def test_a_guide_of_something_else_is_refused(classifier, guide, kind):
    made = {
        "classifier": lambda: CheckpointClassifierGuidance(checkpoint=classifier[0], scale=1.0),
        "guide": lambda: CheckpointAutoguidance(checkpoint=guide[0], scale=1.0),
    }[kind]()
    made.check_fits(model(), (8, 8))
    with pytest.raises(InputError, match=f"the {kind} .* latents of 2 channels at 1/4, the model .* 4 channels at"):
        made.check_fits(model(latent={"channels": 4, "factor": 4}), (8, 8))
    with pytest.raises(InputError, match=f"the {kind} .* first stage aaaaaaaaaaaa, the model 'model' on bbbbbbbbbbbb"):
        made.check_fits(model(first_stage={"path": "other", "hash": "b" * 64}), (8, 8))
    table = model()
    table.denoiser.path = ScaledLinearDDPM()
    with pytest.raises(InputError, match=f"the {kind} .* path RectifiedFlow, the model on ScaledLinearDDPM"):
        made.check_fits(table, (8, 8))


def test_latents_scaled_otherwise_are_refused(classifier):
    made = CheckpointClassifierGuidance(checkpoint=classifier[0], scale=1.0)
    with pytest.raises(InputError, match=r"the classifier .* scaled otherwise than those of 'model'"):
        made.check_fits(model(first_stage=FIRST | {"mean": [0.0], "std": [5.0]}), (8, 8))


def test_a_guide_that_does_not_answer_at_the_noisiest_time_is_refused(saved):
    node = DENOISER | {"parameterization": {"_target_": "latentdiff.diffusion.parameterization.Epsilon"}}
    parts = {"denoiser": build(node), "conditioner": build(CONDITIONER)}
    path, _ = saved("diffusion", {"denoiser": node, "conditioner": CONDITIONER}, torch.nn.ModuleDict(parts))
    with pytest.raises(InputError, match=r"answers up to t=0\.99 \(its prediction is Epsilon\), .* starts at t=1"):
        CheckpointAutoguidance(checkpoint=path, scale=2.0).check_fits(model(), (8, 8))


def test_two_tables_of_one_class_are_told_apart(classifier):
    made = CheckpointClassifierGuidance(checkpoint=classifier[0], scale=1.0)
    made.classifier.path = ScaledLinearDDPM()
    other = model()
    other.denoiser.path = ScaledLinearDDPM(beta_end=0.0121)
    with pytest.raises(InputError, match="with another alpha or sigma"):
        made.check_fits(other, (8, 8))
    other.denoiser.path = ScaledLinearDDPM()
    made.check_fits(other, (8, 8))


def test_a_classifier_that_halves_needs_even_latents(classifier):
    made = CheckpointClassifierGuidance(checkpoint=classifier[0], scale=1.0)
    with pytest.raises(InputError, match="latents of multiples of 2, the images have 8 x 7"):
        made.check_fits(model(), (8, 7))


def test_checkpoints_of_another_kind_are_refused(classifier, guide):
    with pytest.raises(InputError, match=r"of kind diffusion \(stage two\), one of kind classifier"):
        load_classifier(guide[0])
    with pytest.raises(InputError, match=r"of kind classifier \(noisy classifier\), one of kind diffusion"):
        load_denoiser(classifier[0])


def test_a_classifier_without_its_first_stage_s_name_is_refused(saved):
    path, _ = saved("classifier", {"classifier": CLASSIFIER}, build(CLASSIFIER), first_stage=None)
    with pytest.raises(InputError, match="does not say which first stage"):
        load_classifier(path)
