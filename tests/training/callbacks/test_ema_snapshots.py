import functools
import json

import pytest
import torch
from safetensors.torch import load_file

from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError
from latentdiff.training.callbacks.checkpoints import Checkpoints
from latentdiff.training.callbacks.ema_snapshots import EmaSnapshots, read_snapshots
from latentdiff.training.checkpoint_io import DirectoryCheckpointIO
from latentdiff.training.power_ema import PowerEma


@pytest.fixture
def module(diffusion_module):
    return functools.partial(diffusion_module, power_ema=PowerEma)


def seen(folder) -> list[tuple[int, float]]:
    return [(snapshot.batches_seen, snapshot.length) for snapshot in read_snapshots(folder / "ema_snapshots")]


def test_the_averages_are_written_with_their_counters(module, batch, fit, tmp_path):
    trained = module()
    fit(trained, [batch(i) for i in range(6)], EmaSnapshots(run_dir=str(tmp_path), total=6, count=2))
    assert seen(tmp_path) == [(3, 0.05), (3, 0.1), (6, 0.05), (6, 0.1)]
    snapshot = read_snapshots(tmp_path / "ema_snapshots")[-1]
    assert (snapshot.updates, snapshot.images_seen, snapshot.dtype) == (6, 24, "float32")
    weights = load_file(tmp_path / "ema_snapshots" / snapshot.weights)
    own = dict(trained.power_ema.averages[1].named_parameters())
    assert weights.keys() == own.keys() == {name for name, p in trained.model.named_parameters() if p.requires_grad}
    assert all(torch.equal(weights[name], own[name]) for name in weights)
    assert not list((tmp_path / "ema_snapshots").glob(".*"))


def test_every_checkpoint_has_one(module, batch, fit, tmp_path):
    callbacks = EmaSnapshots(run_dir=str(tmp_path), total=4, count=1), Checkpoints(run_dir=str(tmp_path), every=2)
    fit(module(), [batch(i) for i in range(5)], *callbacks, plugins=[DirectoryCheckpointIO(config="")])
    assert seen(tmp_path) == [(n, length) for n in (2, 4, 5) for length in (0.05, 0.1)]


def test_what_a_killed_process_left_is_cleared_at_the_start(module, batch, fit, tmp_path):
    (tmp_path / "ema_snapshots").mkdir()
    for name in (".tmp-batch-00000003-length-0.05.safetensors-01234567", ".tmpAb3dE6"):
        (tmp_path / "ema_snapshots" / name).write_text("half")
    fit(module(), [batch(0)], EmaSnapshots(run_dir=str(tmp_path), total=6, count=1))
    assert not list((tmp_path / "ema_snapshots").iterdir())


def test_a_snapshot_that_the_disk_refuses_is_left_out(module, batch, fit, tmp_path, monkeypatch, caplog):
    write = store.save_file

    def fill(tensors, file):
        if "length-0.05" in file.name:
            raise OSError(28, "No space left on device")
        write(tensors, file)

    monkeypatch.setattr(store, "save_file", fill)
    fit(module(), [batch(i) for i in range(2)], EmaSnapshots(run_dir=str(tmp_path), total=2, count=1))
    assert seen(tmp_path) == [(2, 0.1)]
    assert "batch-00000002-length-0.05.safetensors' left as it is: [Errno 28] No space left" in caplog.text


def test_half_precision_is_written_on_request_and_refused_where_it_overflows(module, batch, fit, tmp_path):
    trained = module()
    fit(trained, [batch(0)], EmaSnapshots(run_dir=str(tmp_path), total=1, dtype="float16"))
    snapshot = read_snapshots(tmp_path / "ema_snapshots")[0]
    weights = load_file(tmp_path / "ema_snapshots" / snapshot.weights)
    own = dict(trained.power_ema.averages[0].named_parameters())
    assert all(torch.equal(value, own[name].half()) for name, value in weights.items())
    large = module()
    with torch.no_grad():
        large.model["denoiser"].backbone.out[2].bias.fill_(1e5)
    with pytest.raises(InputError, match=r"denoiser.backbone.out.2.bias does not fit float16; use float32"):
        fit(large, [batch(0)], EmaSnapshots(run_dir=str(tmp_path), total=1, dtype="float16"))


def test_nothing_without_the_averages(any_module, batch, fit, tmp_path):
    fit(any_module(), [batch(0)], EmaSnapshots(run_dir=str(tmp_path), total=1))
    assert not (tmp_path / "ema_snapshots").exists()


def test_a_resumed_run_drops_what_its_checkpoint_has_not_seen(module, batch, fit, tmp_path):
    trained = module()
    fit(trained, [batch(i) for i in range(4)], EmaSnapshots(run_dir=str(tmp_path), total=1))
    trained.counters.batches_seen = 2
    fit(trained, [batch(2)], EmaSnapshots(run_dir=str(tmp_path), total=100, count=1))
    assert seen(tmp_path) == [(n, length) for n in (1, 2) for length in (0.05, 0.1)]
    assert len(list((tmp_path / "ema_snapshots").iterdir())) == 8


def test_damage_is_named(module, batch, fit, tmp_path):
    fit(module(), [batch(0)], EmaSnapshots(run_dir=str(tmp_path), total=1))
    file = min((tmp_path / "ema_snapshots").glob("*.json"))
    for text in ("{", json.dumps({"length": 0.1})):
        file.write_text(text)
        with pytest.raises(InputError, match=r"length-0\.05\.json' is damaged"):
            read_snapshots(tmp_path / "ema_snapshots")


@pytest.mark.parametrize(("options", "message"), [({"count": 0}, "at least 1"), ({"dtype": "bfloat16"}, "float32 or")])
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        EmaSnapshots(run_dir=str(tmp_path), total=8, **options)
