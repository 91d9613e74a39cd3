import json
import math
from io import StringIO

import pytest
from rich.console import Console

from latentdiff.evaluation.curve import Point, points_tables
from latentdiff.evaluation.page import write_page
from latentdiff.evaluation.report import flattened, results_table, shown, write_results


def test_results_round_trip_and_stay_strict_json(tmp_path):
    path = tmp_path / "run" / "results.json"
    write_results(path, {"results": {"psnr": math.inf, "f": {"x": 1.5, "list": (1, math.nan)}}, "card": {"seed": 0}})

    def refuse(constant):
        raise AssertionError(constant)

    loaded = json.loads(path.read_text(), parse_constant=refuse)
    assert loaded == {"results": {"psnr": "inf", "f": {"x": 1.5, "list": [1, "nan"]}}, "card": {"seed": 0}}


def test_a_failed_write_keeps_the_old_results(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, {"results": {"a": 1}})
    with pytest.raises(TypeError):
        write_results(path, {"results": {"a": object()}})
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


@pytest.mark.parametrize(
    ("value", "plain", "signed"),
    [
        (12.345678, "12.3457", "+12.3457"),
        (0.1, "0.1000", "+0.1000"),
        (5e-4, "0.0005", "+0.0005"),
        (0.0123456, "0.01235", "+0.01235"),
        (-3.21e-7, "-3.21e-07", "-3.21e-07"),
        (-0.25, "-0.2500", "-0.2500"),
        (0.0, "0.0000", "+0.0000"),
        (-0.0, "0.0000", "+0.0000"),
        (math.inf, "inf", "+inf"),
        (3, "3", "+3"),
        ("inf", "inf", "inf"),
    ],
)
def test_small_numbers_stay_readable(value, plain, signed):
    assert (shown(value), shown(value, signed=True)) == (plain, signed)


def test_every_table_shows_numbers_alike(tmp_path):
    results = {"kid": {"kid_n10": 5e-4}}
    out = StringIO()
    Console(file=out, width=80).print(results_table(results, spread={"kid": {"kid_n10": 2e-5}}))
    write_page(tmp_path / "r.html", title="", command="", found={"results": results})
    point = Point("a", {"steps": 2}, {"kid": 5e-4}, {"kid": 2e-5})
    for table in points_tables([point], title=""):
        Console(file=out, width=80).print(table)
    assert out.getvalue().count("0.0005 ± 2e-05") == 2
    assert ">0.0005<" in (tmp_path / "r.html").read_text()


def test_names_of_the_demo_s_length_are_whole_on_80_columns() -> None:
    out, name = StringIO(), "precision_randconv-v1_n500"
    captions = {"reconstructions": {"two_objects.background": 1.0}}
    found = {"reconstructions": {"small": {name: 0.5}}, "captions": captions}
    Console(file=out, width=80).print(results_table(found))
    assert f"reconstructions.small.{name}" in out.getvalue()
    assert "captions.reconstructions.two_objects.background" in out.getvalue()
