"""Tables and curves of several evaluations of one model."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from latentdiff.evaluation.curve import (
    Point,
    best,
    draw_curves,
    is_clip_score,
    is_frechet,
    numbers_of,
    points_tables,
    write_csv,
)

FD, CLIP = "features.fd_randconv-v1_n500", "text.clip_score_ViT-B-32_n500"


def point(guidance: float, sampler: str, distance: float, score: float, **sd: float) -> Point:
    settings = {"sampler": sampler, "guidance": guidance}
    return Point(f"sampler-{sampler}_guidance-{guidance:g}", settings, {FD: distance, CLIP: score}, sd)


POINTS = [
    point(2.0, "heun", 3.0, 22.0),
    point(1.0, "heun", 5.0, 20.0),
    point(1.0, "euler", 6.0, 21.0),
    point(2.0, "euler", 2.5, 24.0),
]


def test_what_of_nested_results_is_a_number() -> None:
    results = {"features": {"fd_x_n5": 1.5, "count": 5, "note": "none"}, "maps": {"per_class": [1.0], "whole": True}}
    assert numbers_of(results) == {"features.fd_x_n5": 1.5, "features.count": 5}


@pytest.mark.parametrize(
    ("name", "frechet", "clip"),
    [
        ("inception.fid_n50000", True, False),
        ("inception.rfid_n50000", True, False),
        ("inception.sfid_n50000", True, False),
        ("features.fd-spatial_randconv-v1_n500", True, False),
        ("features.fd_clip-ViT-B-32-quality0.5_n500", True, False),
        ("inception.fid_infinity_n50000", True, False),
        ("inception.fid_infinity_sd_n50000", False, False),
        ("inception.kid_n500", False, False),
        ("fid.precision_n500", False, False),
        (CLIP, False, True),
        ("fidelity", False, False),
    ],
)
def test_which_numbers_curves_are_drawn_of(name: str, frechet: bool, clip: bool) -> None:
    assert (is_frechet(name), is_clip_score(name)) == (frechet, clip)


def test_the_best_is_the_smallest_distance_the_largest_score_and_nothing_of_the_unknown() -> None:
    points = [Point(str(i), {}, {FD: d, CLIP: c, "latents.std": 1.0}, {}) for i, (d, c) in enumerate([(2, 1), (1, 3)])]
    assert best(points) == {FD: 1, CLIP: 1}
    assert best([*points, *points]) == {FD: 1, CLIP: 1}
    names = ["inception.kid_n9", "inception.kid_sd_n9", "captions.two_objects.shape", "captions.shuffled.shape"]
    assert best([Point("", {}, dict.fromkeys(names, 1.0), {})]) == {names[0]: 0, names[2]: 0}


def test_the_tables_mark_the_best_and_show_deviations() -> None:
    points = [point(1.0, "heun", 5.0, 20.0), point(2.0, "heun", 4.0, 19.0, **{FD: 0.25})]
    more = {f"a.{name}": float(i) for i, name in enumerate(("kid", "recall", "loss"))}
    points = [replace(each, numbers={**each.numbers, **more}) for each in points]
    console = Console(width=160, record=True)
    tables = points_tables(points, title="t")
    assert [len(table.columns) for table in tables] == [5, 3]  # sampler, guidance and three numbers; one more
    console.print(*tables)
    text = console.export_text()
    assert "4.0000 ± 0.2500 *" in text
    assert "20.0000 *" in text
    assert "5.0000 *" not in text
    assert "a.loss" not in text


def test_the_csv_has_a_row_per_point_and_a_column_per_number(tmp_path: Path) -> None:
    odd = Point("odd", {"sampler": "euler", "guidance": 3.0}, {FD: 1.0, "more": 7}, {FD: 0.5})
    write_csv([POINTS[0], odd], tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "name": "sampler-heun_guidance-2",
        "sampler": "heun",
        "guidance": "2.0",
        FD: "3.0",
        CLIP: "22.0",
        "more": "",
        f"{FD}_sd": "",
    }
    assert (rows[1][CLIP], rows[1]["more"], rows[1][f"{FD}_sd"]) == ("", "7", "0.5")


def test_curves_are_drawn_over_guidance_and_over_the_clip_score_alike_every_time(tmp_path: Path) -> None:
    drawn = draw_curves(POINTS, tmp_path / "a")
    assert [path.name for path in drawn] == [
        "features.fd_randconv-v1_n500_over_guidance.svg",
        "features.fd_randconv-v1_n500_over_text.clip_score_ViT-B-32_n500.svg",
    ]
    again = draw_curves(POINTS[::-1], tmp_path / "b")
    for one, two in zip(drawn, again):
        assert one.read_bytes() == two.read_bytes()
        assert one.with_suffix(".png").read_bytes() == two.with_suffix(".png").read_bytes()
        assert Image.open(one.with_suffix(".png")).size == (768, 528)
    text = drawn[0].read_text()
    assert all(word in text for word in ("guidance scale", FD, "sampler euler", "sampler heun"))
    assert "nan" not in text


def test_without_guidance_there_is_no_curve(tmp_path: Path) -> None:
    assert draw_curves([Point("steps-2", {"steps": 2}, {FD: 1.0}, {})], tmp_path) == []
    assert list(tmp_path.iterdir()) == []
