"""How many processes a trainer's configuration asks for."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from latentdiff.app.build import processes
from latentdiff.config.errors import InputError


@pytest.mark.parametrize(
    ("devices", "nodes", "count"),
    [(2, 1, 2), ("2", 3, 6), ("0,1", 1, 2), ([0, 3, 5], 2, 6), ("auto", 2, 2), (-1, 1, 1)],
)
def test_processes_are_devices_times_nodes(devices: object, nodes: int, count: int) -> None:
    node = {"accelerator": "cpu", "devices": devices, "num_nodes": nodes}
    assert processes(OmegaConf.create(node)) == count


@pytest.mark.parametrize("devices", ["two", "", "1.5"])
def test_devices_that_are_no_number_are_refused(devices: str) -> None:
    with pytest.raises(InputError, match="expected auto, a number of devices or a list"):
        processes(OmegaConf.create({"accelerator": "cpu", "devices": devices}))
