"""How a sampling is watched from another thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from latentdiff.app.page.progress import StoppedError, Visitor, Watch, followed
from latentdiff.config.errors import InputError


def test_reports_take_their_share_of_the_time_and_no_more() -> None:
    now, shown = [0.0], []

    def show(x0_hat: Tensor) -> Tensor:
        now[0] += 2.0  # seconds
        return x0_hat

    watch = Watch(total=100, show=show, report=shown.append, visitor=Visitor(), clock=lambda: now[0])
    for step in range(100):
        now[0] += 0.125
        watch(step, None, None, torch.zeros(1))
    assert [one.step for one in shown] == [4, 68], "after 0.4 s, and 4 x 2 s after the first has cost 2 s"


def test_an_error_in_the_work_is_raised_where_it_is_followed() -> None:
    def work(tell):
        tell("one")
        raise InputError("at fault")

    with ThreadPoolExecutor(1) as pool:
        following = followed(pool, work, Visitor())
        assert next(following) == "one"
        with pytest.raises(InputError, match="at fault"):
            next(following)


def test_a_stopped_visitor_ends_the_sampling_at_its_next_step() -> None:
    visitor = Visitor()
    watch = Watch(total=2, show=lambda x: x, report=lambda told: None, visitor=visitor)
    watch(0, None, None, torch.zeros(1))
    visitor.stopped = True
    with pytest.raises(StoppedError):
        watch(1, None, None, torch.zeros(1))
