"""Scenes from files: what a line becomes, and which lines are refused, by their number."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from latentdiff.app.sampling.prompts import Row, read_rows, scenes_of
from latentdiff.app.sampling.request import GIVEN
from latentdiff.config.errors import InputError


def config(**given: object) -> DictConfig:
    return OmegaConf.create({**dict.fromkeys((*GIVEN, "seeds")), **given})


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_a_text_file_has_a_prompt_per_line(tmp_path: Path) -> None:
    rows = read_rows(written(tmp_path, "p.txt", "a, b\n${c} = 'd'\n"))
    assert [row.values for row in rows] == [{"prompt": "a, b"}, {"prompt": "${c} = 'd'"}]
    assert rows[1].source == "prompts: p.txt line 2"


def test_tables_say_the_same_in_both_forms(tmp_path: Path) -> None:
    table = written(tmp_path, "p.csv", 'prompt,label,seed,image\n"a ""b"", c",3,-4,x.png\n,ring,5,/y.png\n')
    lines = written(
        tmp_path,
        "p.jsonl",
        '{"prompt": "a \\"b\\", c", "label": 3, "seed": -4, "image": "x.png"}\n\n'
        '{"prompt": "", "label": "ring", "seed": 5, "image": "/y.png"}\n',
    )
    for path in (table, lines):
        first, second = scenes_of(read_rows(path), config(negative_prompt="d"))
        assert (first.prompt, first.label, first.seed, first.image) == ('a "b", c', 3, -4, tmp_path / "x.png")
        assert (second.prompt, second.label, second.seed, second.image) == ("", "ring", 5, Path("/y.png"))
        assert (first.negative_prompt, first.mask) == ("d", None)
    assert second.source == "prompts: p.jsonl line 3"


WRONG = {
    "empty.txt": ("", "empty.txt' holds no caption"),
    "hole.txt": ("a\n\nb\n", r"1 of 3 lines of .* are empty \(line 2\)"),
    "empty.csv": ("prompt\n", "empty.csv' holds no rows"),
    "short.csv": ("prompt,seed\na\n", "prompts: short.csv line 2 has not as many cells"),
    "cell.csv": ("prompt,seed\na,1\nb,\n", "prompts: cell.csv line 3: seed is empty"),
    "text.csv": ("prompt,seed\na,one\n", "prompts: text.csv line 2: seed: expected a whole number, got 'one'"),
    "dashes.csv": ("seed\n--3\n", "dashes.csv line 2: seed: expected a whole number, got '--3'"),
    "quote.csv": ('prompt\n"a\n', "prompts: .*quote.csv is not a table"),
    "line.jsonl": ('{"prompt": "a"}\n[1]\n', "prompts: line.jsonl line 2 is no JSON object but list"),
    "json.jsonl": ('{"prompt": "a"}\n{"prompt\n', "prompts: json.jsonl line 2 cannot be parsed as JSON"),
    "column.jsonl": ('{"promt": "a"}\n', "column.jsonl line 1: unknown column 'promt'; did you mean prompt"),
    "kind.jsonl": ('{"prompt": 3}\n', "kind.jsonl line 1: prompt: expected text, got 3"),
    "truth.jsonl": ('{"seed": true}\n', "truth.jsonl line 1: seed: expected a whole number, got True"),
    "null.jsonl": ('{"prompt": "a", "label": null}\n', "null.jsonl line 1: label is empty"),
    "ragged.jsonl": ('{"prompt": "a"}\n{"prompt": "b", "seed": 1}\n', "ragged.jsonl line 2: seed must be in all rows"),
    "p.parquet": ("", "expected a .txt file with a prompt per line, a .jsonl or a .csv"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_used_is_refused_by_its_line(tmp_path: Path, name: str) -> None:
    content, message = WRONG[name]
    with pytest.raises(InputError, match=message) as refused:
        scenes_of(read_rows(written(tmp_path, name, content)), config())
    assert str(refused.value).startswith("prompts: ")


@pytest.mark.parametrize("name", ["gone.txt", "gone.csv", "gone.jsonl"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"prompts: '.*{name}' cannot be read"):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "b"}, "prompt: the file of prompts has a column prompt"),
        ({"seeds": [1]}, "seeds: the file of prompts has a column seed"),
        ({"label": [1, 2]}, "prompts: lists of values and a file of rows do not go together"),
    ],
)
def test_nothing_is_given_twice(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scenes_of([Row("line 1", {"prompt": "a", "seed": 0})], config(**given))
