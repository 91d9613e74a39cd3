import copy
import logging

import pytest
import torch

from latentdiff.config.errors import InputError
from latentdiff.losses.adversarial import ADAPTIVE_LIMIT
from latentdiff.training.adversary_watch import BALANCED, COLLAPSED, TAKEN_OVER, AdversaryWatch

FAIR = {"accuracy": 0.7, "real": 0.3, "fake": -0.3, "weight": 1.0, "limit": ADAPTIVE_LIMIT}
GUESS = FAIR | {"accuracy": 0.5, "real": 0.2, "fake": 0.2}
SURE = FAIR | {"accuracy": 0.99, "real": 3.0, "fake": -3.0}


def run(watch, *windows):
    """One message or None per window of four batches."""
    news = []
    for values in windows:
        messages = [watch.observe(**values) for _ in range(4)]
        assert messages[:3] == [None] * 3
        news.append(messages[3])
    return news


def test_fair_game_is_silent():
    watch = AdversaryWatch(window=4)
    assert run(watch, FAIR, FAIR) == [None, None]
    assert watch.state == BALANCED


def test_collapse_is_told_once_and_so_is_its_end():
    watch = AdversaryWatch(window=4)
    told, again, over, still = run(watch, GUESS, GUESS, FAIR, FAIR)
    assert "collapsed" in told
    assert "accuracy 0.500" in told
    assert "adversarial.optimizer" in told
    assert again is None
    assert "balanced again" in over
    assert still is None


def test_guessing_with_moving_logits_is_no_collapse():
    watch = AdversaryWatch(window=4)
    for n in range(8):
        assert watch.observe(**(GUESS | {"real": 0.1 * (-1) ** n})) is None
    assert watch.state == BALANCED


@pytest.mark.parametrize(
    "values", [SURE, FAIR | {"weight": ADAPTIVE_LIMIT}, FAIR | {"weight": 0.0}], ids=["sure", "limit", "zero"]
)
def test_taking_over(values):
    watch = AdversaryWatch(window=4)
    told, again = run(watch, values, values)
    assert "taken over" in told
    assert again is None
    assert watch.state == TAKEN_OVER


def test_unheard_batches_have_no_weight():
    watch = AdversaryWatch(window=4)
    assert run(watch, FAIR | {"weight": None}) == [None]


def test_memory_is_in_the_state():
    before, after = AdversaryWatch(window=4), AdversaryWatch(window=4)
    run(before, GUESS)
    before.observe(**FAIR)
    after.load_state_dict(copy.deepcopy(before.state_dict()), strict=True)
    assert after.state == COLLAPSED
    for _ in range(3):
        assert before.observe(**GUESS) == after.observe(**GUESS)
    assert before.values == after.values


def test_short_windows_are_refused():
    with pytest.raises(InputError, match="at least 2"):
        AdversaryWatch(window=1)


def test_a_dead_discriminator_is_told_and_logged(autoencoder_module, batch, fit, caplog):
    module = autoencoder_module(alarm_window=3, discriminator_optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    with torch.no_grad():
        module.discriminator.main[-1].weight.zero_()
        module.discriminator.main[-1].bias.fill_(0.3)
    with caplog.at_level(logging.WARNING, "latentdiff"):
        trainer = fit(module, [batch(i) for i in range(7)])
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("latentdiff")]
    assert len(warnings) == 1
    assert warnings[0].startswith("batch 3: the discriminator has collapsed")
    assert trainer.callback_metrics["train/adversary_state"] == COLLAPSED
    assert trainer.callback_metrics["train/discriminator_accuracy"] == 0.5


def test_state_survives_a_checkpoint_of_the_module(autoencoder_module, batch, fit):
    module, fresh = autoencoder_module(alarm_window=10), autoencoder_module(alarm_window=10)
    fit(module, [batch(i) for i in range(3)])
    fresh.load_state_dict(module.state_dict(), strict=True)
    assert fresh.watch.values == module.watch.values
    assert fresh.watch.values["batches"] == 3
