from __future__ import annotations

import pytest

from latentdiff.checkpoint.foreign.statistics import Statistics, checked, chosen
from latentdiff.config.errors import InputError

OWN = Statistics((0.5, -0.5), (2.0, 4.0))


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [
        (OWN, {}, OWN),
        (OWN, {"scale": 0.5}, Statistics((0.5, -0.5), (2.0, 2.0))),
        (OWN, {"shift": 0}, Statistics((0.0, 0.0), (2.0, 4.0))),
        (None, {"scale": 0.25}, Statistics((0.0, 0.0), (4.0, 4.0))),
        (None, {"scale": 0.25, "shift": 0.1}, Statistics((0.1, 0.1), (4.0, 4.0))),
    ],
)
def test_what_the_user_says_goes_before_what_the_file_says(own, given, expected):
    assert chosen(own, 2, **given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"'f.ckpt' does not say how .* give first_stage.scale=NUMBER .*0\.18215 for Stable Diffusion"),
        ({"shift": 0.1}, "does not say how"),
        ({"scale": 0.0}, "must be a number above 0, got 0.0"),
        ({"scale": "big"}, "must be a number above 0, got 'big'"),
        ({"scale": float("nan")}, "must be a number above 0, got nan"),
        ({"scale": True}, "must be a number above 0, got True"),
        ({"scale": 1.0, "shift": "low"}, r"\(first_stage.shift\) must be a number, got 'low'"),
    ],
)
def test_what_is_no_scale_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        chosen(None, 2, path="f.ckpt", **given)


def test_factors_are_given_where_they_are_exact():
    assert Statistics((0.25,) * 3, (4.0,) * 3).factors() == (0.25, 0.25)
    assert Statistics((0.25,) * 3, (4.0, 4.0, 4.0000001)).factors() is None
    assert Statistics((0.25, 0.0), (4.0,) * 2).factors() is None


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.0], [1.0, 1.0], "the mean of 1 latent channels, but its autoencoder has 2"),
        ([0.0, 0.0], [1.0, 0.0], r"unusable values as the latents' standard deviation: \[1.0, 0.0\]"),
        ([0.0, float("inf")], [1.0, 1.0], "unusable values as the latents' mean"),
    ],
)
def test_statistics_of_a_file_are_checked(mean, std, message):
    with pytest.raises(InputError, match=message):
        checked(mean, std, 2, "f")


def test_near_is_equal_as_float32():
    assert OWN.is_near(Statistics((0.5 + 1e-9, -0.5), (2.0, 4.0)))
    assert not OWN.is_near(Statistics((0.5, -0.5), (2.0, 4.001)))
    assert not OWN.is_near(Statistics((0.5,), (2.0,)))
