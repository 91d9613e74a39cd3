import json
import math
import subprocess
from io import StringIO

import pytest
import torch
from rich.console import Console

from latentdiff.checkpoint import store
from latentdiff.evaluation.card import environment, protocol_card, source_revision
from latentdiff.evaluation.report import flattened, results_table, write_results


class Generate:
    def describe(self):
        return {"sampler": {"name": "Euler"}, "steps": 4}


class Metric:
    def describe(self):
        return {"features": "flat"}


def test_card_identifies_the_checkpoint_and_the_protocol(tmp_path):
    manifest = store.save(
        tmp_path / "last",
        kind="diffusion",
        model={"w": torch.zeros(2)},
        config="",
        counters={"batches_seen": 3, "images_seen": 24},
        first_stage={"path": "ae", "hash": "cd"},
    )
    card = protocol_card(
        checkpoint=tmp_path / "last",
        weights="ema",
        generate=Generate(),
        metrics={"f": Metric(), "plain": object()},
        data="shapes val",
        num_images=100,
        batch_size=8,
        seed=2,
        image_size=64,
        wall_seconds=1.23456,
        world_size=2,
    )
    assert json.loads(json.dumps(card)) == card
    assert card["model"] == {
        "checkpoint": str(tmp_path / "last"),
        "digest": manifest.digest,
        "kind": "diffusion",
        "weights": "ema",
        "batches_seen": 3,
        "images_seen": 24,
        "first_stage": {"path": "ae", "hash": "cd"},
    }
    assert card["generation"] == Generate().describe()
    assert (card["seeds"]["first"], card["seeds"]["count"]) == (2 << 32, 100)
    assert (card["samples"]["conditions"], card["reference"], card["samples"]["resolution"]) == (
        "shapes val",
        "shapes val",
        64,
    )
    assert card["metrics"] == {"f": {"class": "Metric", "features": "flat"}, "plain": {"class": "object"}}
    assert (card["environment"]["world_size"], card["wall_seconds"]) == (2, 1.235)
    assert environment(1)["packages"]["torch"].startswith(torch.__version__.split("+")[0])


def test_revision_is_that_of_our_own_repository_only(tmp_path):
    package = tmp_path / "src" / "latentdiff"
    package.mkdir(parents=True)
    assert source_revision(package) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    (package / "a.py").write_text("1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert source_revision(package) == head
    (package / "a.py").write_text("2")
    assert source_revision(package) == f"{head}+changes"
    elsewhere = tmp_path / "lib" / "latentdiff"
    elsewhere.mkdir(parents=True)
    assert source_revision(elsewhere) is None


def test_results_round_trip_and_stay_strict_json(tmp_path):
    path = tmp_path / "run" / "results.json"
    write_results(path, {"psnr": math.inf, "f": {"x": 1.5, "list": (1, math.nan)}}, {"seed": 0})

    def refuse(constant):
        raise AssertionError(constant)

    loaded = json.loads(path.read_text(), parse_constant=refuse)
    assert loaded == {"results": {"psnr": "inf", "f": {"x": 1.5, "list": [1, "nan"]}}, "card": {"seed": 0}}


def test_a_failed_write_keeps_the_old_results(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {"a": 1}, {})
    with pytest.raises(TypeError):
        write_results(path, {"a": object()}, {})
    assert json.loads(path.read_text())["results"] == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_table_has_a_row_per_number():
    results = {"frechet": {"fd_x_n10": 1.23456}, "accuracy": {"one": {"shape": 0.5}}, "count": 3}
    assert dict(flattened(results)) == {"frechet.fd_x_n10": 1.23456, "accuracy.one.shape": 0.5, "count": 3}
    out = StringIO()
    Console(file=out, width=80).print(results_table({**results, "curve": {"power": [1.0, 2.0]}}))
    assert "curve" not in out.getvalue()
    for text in ("frechet.fd_x_n10", "1.2346", "accuracy.one.shape", "0.5000", "count"):
        assert text in out.getvalue()
