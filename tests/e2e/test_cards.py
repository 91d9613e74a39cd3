"""An evaluation's card repeats it, and says what it may be compared with."""

import json
import shutil

import pytest

from latentdiff.app import cli


@pytest.fixture(scope="module")
def evaluated(programs, ldm, tmp_path_factory):
    """``evaluated(name, *overrides)``: the run directory of an evaluation of few images."""
    home = tmp_path_factory.mktemp("cards")

    def run(name, *overrides):
        asked = (f"checkpoint={ldm}", "num_images=5", "batch_size=2", "seed=3", f"run_dir={home / name}", *overrides)
        programs.done("evaluate", *programs.use, *asked)
        return home / name

    return run


@pytest.fixture(scope="module")
def first(evaluated):
    return evaluated("first")


def read(run_dir):
    return json.loads((run_dir / "results.json").read_text())


def test_the_card_alone_gives_the_same_numbers(programs, first, ldm, tmp_path):
    moved = shutil.copytree(ldm / "checkpoints" / "last", tmp_path / "moved")
    asked = (f"card={first / 'results.json'}", f"checkpoint={moved}", f"run_dir={tmp_path / 'again'}", "trainer=cpu")
    outcome = programs.done("evaluate", *asked)
    before, again = read(first), read(tmp_path / "again")
    assert "numbers are those of" in outcome.out
    assert again["results"] == before["results"]
    assert again["controls"] == before["controls"]
    for part in ("protocol", "observed"):
        assert again["card"][part] == before["card"][part]


def test_numbers_that_are_not_the_card_s_fail(programs, first, tmp_path):
    found = read(first)
    name, numbers = next((n, r) for n, r in found["results"].items() if isinstance(next(iter(r.values())), float))
    numbers[next(iter(numbers))] += 1
    (tmp_path / "results.json").write_text(json.dumps(found))
    outcome = programs("evaluate", f"card={tmp_path / 'results.json'}", f"run_dir={tmp_path / 'again'}")
    assert outcome.code == 1
    assert f"  {name}." in outcome.err
    assert (tmp_path / "again" / "results.json").is_file()


def test_compared_where_the_protocol_is_one(first, evaluated, capsys):
    other = evaluated("guided", "guidance.scale=1.5")
    assert cli.main(["compare", str(first), str(first)]) == 0
    assert cli.main(["compare", str(first), str(other)]) == 2
    assert "protocol.generation.guidance.scale" in capsys.readouterr().err
    assert cli.main(["compare", str(first), str(other), "--differ", "protocol.generation.guidance.scale"]) == 0


def test_the_page_shows_samples_and_neighbours(first):
    page = (first / "report.html").read_text(encoding="utf-8")
    for text in ("Numbers", "Nearest training images", f"card={first / 'results.json'}"):
        assert text in page
    count = min(5, 8)
    assert page.count("<img") >= 5 + count * 4
