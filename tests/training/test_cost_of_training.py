import itertools

import pytest
import torch

from latentdiff.training.cost_of_training import DataWait, peak_memory


def test_waiting_for_data_is_counted_and_nothing_else(autoencoder_module, batch, fit, monkeypatch):
    """Every look at the clock is a second later than the one before: each of three fetches takes one."""
    clock = itertools.count()
    monkeypatch.setattr("latentdiff.training.cost_of_training.time.perf_counter", lambda: float(next(clock)))
    wait = DataWait()
    fit(autoencoder_module(), [batch(i) for i in range(3)], profiler=wait)
    assert wait.take() == 3.0
    assert wait.take() == 0.0


def test_memory_on_a_cpu_is_the_most_that_was_resident():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(2**28, dtype=torch.uint8)  # a quarter of a GiB, touched
    assert before + held.nbytes / 2**30 - peak_memory(torch.device("cpu")) < 0.25
    assert 0.05 < before <= peak_memory(torch.device("cpu")) < 64


@pytest.mark.gpu
def test_memory_on_a_gpu_is_the_most_that_was_allocated():
    torch.cuda.reset_peak_memory_stats()
    before = peak_memory(torch.device("cuda"))
    torch.empty(2**28, dtype=torch.uint8, device="cuda")
    assert peak_memory(torch.device("cuda")) >= before + 0.2
