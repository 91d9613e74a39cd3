"""The alarm for an adversarial game that has stopped being one."""

from __future__ import annotations

from latentdiff.config.errors import InputError
from latentdiff.losses.memory import Memory

BALANCED, COLLAPSED, TAKEN_OVER = 0.0, -1.0, 1.0
"""The states, as they are logged. Balanced until a first window has passed."""

GUESSING = 0.05
"""Distance from an accuracy of 1/2 within which a discriminator only guesses."""
STILL = 0.01
"""Standard deviation of the batches' mean logits below which they do not move; a margin or a nat is 1."""
SURE = 0.97
"""Accuracy from which on a discriminator is never wrong."""


class AdversaryWatch(Memory):
    """Judges every ``window`` batches of the discriminator by their means; its memory is in the checkpoint.

    Collapsed: it guesses, and its logits do not move. Taken over: it is nearly always right, or the adaptive weight is
    at its limit (the autoencoder gets no gradient from it) or zero in most of the batches in which it is heard.

    Args:
        window: batches.
    """

    def __init__(self, *, window: int = 500):
        if window < 2:
            raise InputError(f"task.alarm_window: expected at least 2 batches, got {window}")
        super().__init__({"state": BALANCED, **dict.fromkeys(_SUMS, 0.0)})
        self.window = window

    @property
    def state(self) -> float:
        return self.values["state"]

    def observe(self, *, accuracy: float, real: float, fake: float, weight: float | None, limit: float) -> str | None:
        """Takes in a batch's means over all ranks: accuracy, logits, and the adaptive weight, if it was
        heard, with its limit.

        Returns what to tell the user when the state has changed at the end of a window, else None.
        """
        new = {
            "batches": 1.0,
            "accuracy": accuracy,
            "real": real,
            "real_squared": real**2,
            "fake": fake,
            "fake_squared": fake**2,
            "heard": float(weight is not None),
            "at_limit": float(weight is not None and weight >= 0.99 * limit),
            "at_zero": float(weight == 0.0),
        }
        sums = {name: self.values[name] + new[name] for name in _SUMS}
        self.values |= sums
        return self._judge(sums) if sums["batches"] >= self.window else None

    def _judge(self, sums: dict[str, float]) -> str | None:
        before = self.state
        mean = {name: total / sums["batches"] for name, total in sums.items()}
        moves = max(_deviation(mean["real"], mean["real_squared"]), _deviation(mean["fake"], mean["fake_squared"]))
        stuck = (sums["at_limit"] + sums["at_zero"]) / max(1.0, sums["heard"])
        if abs(mean["accuracy"] - 0.5) <= GUESSING and moves < STILL:
            state = COLLAPSED
        elif mean["accuracy"] >= SURE or stuck > 0.5:
            state = TAKEN_OVER
        else:
            state = BALANCED
        self.values = {"state": state, **dict.fromkeys(_SUMS, 0.0)}
        if state == before:
            return None
        numbers = (
            f"over {sums['batches']:.0f} batches: accuracy {mean['accuracy']:.3f}, logits {mean['real']:.3g} of images "
            f"and {mean['fake']:.3g} of reconstructions, moving by {moves:.2g}; adaptive weight at its limit in "
            f"{sums['at_limit']:.0f} and zero in {sums['at_zero']:.0f} of {sums['heard']:.0f} batches"
        )
        return f"{_MEANING[state]} ({numbers}). {_ADVICE[state]}"


_SUMS = ("batches", "accuracy", "real", "real_squared", "fake", "fake_squared", "heard", "at_limit", "at_zero")

_MEANING = {
    BALANCED: "the adversarial game is balanced again",
    COLLAPSED: "the discriminator has collapsed: it guesses and no longer moves",
    TAKEN_OVER: "the discriminator has taken over: the autoencoder learns nothing from it",
}

_ADVICE = {
    BALANCED: "Nothing to do.",
    COLLAPSED: "Try a higher learning rate of adversarial.optimizer, less of adversarial.r1 or adversarial.lecam, "
    "more discriminator channels or layers, or another adversarial.loss.",
    TAKEN_OVER: "Try a lower learning rate of adversarial.optimizer, adversarial.r1 or adversarial.lecam, a smaller "
    "discriminator, or a later adversarial.schedule.start with a longer ramp.",
}


def _deviation(mean: float, mean_of_squares: float) -> float:
    return max(0.0, mean_of_squares - mean**2) ** 0.5
