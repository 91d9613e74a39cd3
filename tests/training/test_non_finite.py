import copy

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.models.autoencoder.bottlenecks.vq import VQ
from latentdiff.training.callbacks.metrics_log import NonFiniteError
from latentdiff.training.non_finite import NonFinite

NAN, INF = float("nan"), float("inf")


def state(module) -> dict[str, torch.Tensor]:
    """All weights, averages, statistics and optimiser states."""
    found = {name: value.clone() for name, value in module.state_dict().items() if name != "nonfinite.saved"}
    for i, optimizer in enumerate(module.trainer.optimizers):
        for j, values in optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{i}.{j}.{name}": value.clone() for name, value in values.items()}
    return found


def bad(module, value: float = NAN) -> torch.Tensor:
    """``value`` in batch 2, else 0."""
    return torch.tensor(value if module.counters.batches_seen == 2 else 0.0)


def wrap(owner, name: str, change):
    """Lets ``owner.name`` answer what ``change`` makes of its answer."""
    plain = getattr(owner, name)
    setattr(owner, name, lambda *arguments, **options: change(plain(*arguments, **options)))


def at_a_gradient(module, parameter, value):
    parameter.register_hook(lambda gradient: gradient + bad(module, value))


def spoil_two(module, where: str, value: float) -> None:
    """Stage two, in batch 2 alone."""
    if where == "latent":
        wrap(module.codec, "draw", lambda z: z + bad(module, value))
    elif where == "text embedding":
        module.model["conditioner"].transformer.register_forward_hook(
            lambda m, i, found: _add(found, bad(module, value))
        )
    elif where == "gradient":
        at_a_gradient(module, module.model["denoiser"].backbone.out[2].bias, value)
    else:
        at_a_gradient(module, next(module.model["conditioner"].parameters()), value)


def _add(found, value):
    return tuple(part + value for part in found) if isinstance(found, tuple) else found + value


def spoil_one(module, where: str, value: float, monkeypatch) -> None:
    """Stage one, in batch 2 alone."""
    if where == "image":
        monkeypatch.setattr(
            "latentdiff.training.adversarial_game.images",
            lambda part, like: part.image / 127.5 - 1.0 + bad(module, value),
        )
    elif where == "discriminator logits":
        module.discriminator.register_forward_hook(lambda m, i, logits: logits + bad(module, value))
    elif where == "adaptive weight":
        plain = lambda *_, **__: torch.tensor(1.0) + bad(module, value)  # noqa: E731
        monkeypatch.setattr("latentdiff.training.adversarial_game.adaptive_weight", plain)
    elif where == "gradient":
        at_a_gradient(module, module.autoencoder.last_layer, value)
    elif where == "discriminator gradient":
        at_a_gradient(module, module.discriminator.main[0].weight, value)
    else:
        at_a_gradient(module, module.reconstruction.logvar, value)


ONE = ("image", "discriminator logits", "adaptive weight", "gradient", "discriminator gradient", "log-scale gradient")
TWO = ("latent", "text embedding", "gradient", "text gradient")


@pytest.fixture
def make(autoencoder_module, diffusion_module, tiny, monkeypatch):
    """A module that meets ``value`` at ``where`` in batch 2. The first has all that a forward pass leaves traces in:
    a codebook with moving averages and restarts, and running statistics."""

    def spoilt(where: str, value: float, skip: int, stage: int = 1):
        nonfinite = NonFinite(skip=skip, per=8)
        if stage == 2:
            module = diffusion_module(nonfinite=nonfinite)
            spoil_two(module, where, value)
            return module
        torch.manual_seed(0)
        autoencoder = tiny(VQ(entries=8, channels=2, ema_decay=0.9, restart_after=2))
        module = autoencoder_module(autoencoder=autoencoder, learn_logvar=True, norm="batch", nonfinite=nonfinite)
        spoil_one(module, where, value, monkeypatch)
        return module

    return spoilt


CASES = [(1, where, value) for where in ONE for value in (NAN, INF)] + [
    (2, where, value) for where in TWO for value in (NAN, INF)
]


@pytest.mark.parametrize(("stage", "where", "value"), CASES)
def test_a_batch_that_is_passed_over_leaves_no_trace(make, batch, fit, stage, where, value):
    before, after = make(where, value, 1, stage), make(where, value, 1, stage)
    fit(before, [batch(i) for i in range(2)])
    fit(after, [batch(i) for i in range(3)])
    expected, found = state(before), state(after)
    assert expected.keys() == found.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    assert all(torch.isfinite(value).all() for value in found.values())
    assert (after.counters.batches_seen, after.nonfinite.values["skipped"]) == (3, 1)


@pytest.mark.parametrize(("stage", "where"), [(1, "image"), (1, "log-scale gradient"), (2, "latent"), (2, "gradient")])
def test_training_goes_on_after_it(make, batch, fit, stage, where):
    module = make(where, NAN, 1, stage)
    before = copy.deepcopy(module.ema.state_dict())
    trainer = fit(module, [batch(i) for i in range(5)])
    assert module.ema.updates == 4
    assert all(torch.isfinite(value).all() for value in state(module).values())
    assert any(not torch.equal(value, before[name]) for name, value in module.ema.state_dict().items())
    assert trainer.callback_metrics["train/skipped"] == 1


@pytest.mark.parametrize(("stage", "where", "value"), CASES)
def test_by_default_the_first_one_stops_the_run(make, batch, fit, tmp_path, stage, where, value):
    module = make(where, value, 0, stage)
    with pytest.raises(NonFiniteError, match=r"^batch 2 .*not finite\. The update was not made.*task\.nonfinite\.skip"):
        fit(module, [batch(i) for i in range(4)])
    assert module.counters.batches_seen == 2
    assert all(torch.isfinite(p).all() for p in module.parameters())
    dump = torch.load(tmp_path / "nonfinite" / "batch-00000002-rank-0.pt", weights_only=True)
    assert (dump["number"], dump["batch"]["keys"]) == (2, batch(2).keys)
    assert torch.equal(dump["batch"]["image"], batch(2).image)
    assert any(not torch.isfinite(found).all() for found in dump["values"].values())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_also_in_bfloat16(make, batch, fit, precision):
    module = make("latent", INF, 1, 2)
    fit(module, [batch(i) for i in range(4)], precision=precision)
    assert module.nonfinite.values["skipped"] == 1
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_the_budget_is_for_each_stretch_and_survives_a_restart():
    """Three of 8 batches; batches 0 to 7 are the first stretch."""
    policy = NonFinite(skip=3, per=8)
    assert [policy._pass_over(number) for number in (1, 2)] == [True, True]
    resumed = NonFinite(skip=3, per=8)
    resumed.load_state_dict(policy.state_dict())
    assert [resumed._pass_over(number) for number in (3, 7, 8, 9, 10, 15)] == [True, False, True, True, True, False]
    assert resumed.values["skipped"] == 6


def test_a_full_disk_costs_the_dump_alone(make, batch, fit, tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        raise RuntimeError("[enforce fail at inline_container.cc:863] . PytorchStreamWriter failed writing file")

    module = make("image", NAN, 1, 1)
    monkeypatch.setattr(torch, "save", refuse)
    fit(module, [batch(i) for i in range(4)])
    assert (module.counters.batches_seen, module.nonfinite.values["skipped"]) == (4, 1)
    assert "batch-00000002-rank-0.pt' left as it is: [enforce fail" in caplog.text


@pytest.mark.parametrize(("skip", "per"), [(-1, 10), (10, 10)])
def test_a_budget_that_is_none_is_refused(skip, per):
    with pytest.raises(InputError, match="expected 0 <= skip < per"):
        NonFinite(skip=skip, per=per)
