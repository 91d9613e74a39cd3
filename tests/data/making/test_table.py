"""Tables of image paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentdiff.config.errors import InputError
from latentdiff.data.making.columns import Columns, captions_in, label_of
from latentdiff.data.making.source import LeftOutError
from latentdiff.data.making.table import TableSource, read_csv, read_jsonl, read_tsv


def source(folder: Path, text: str, columns: Columns | None = None, name: str = "t.csv", read=read_csv) -> TableSource:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return TableSource(file, read(file), columns or Columns(), folder)


def test_rows_of_one_image_are_one_sample_with_all_their_captions(pictures, made, entries):
    text = '\ufefffile_name,text,by\n1.png,"one, two",Ann\n0.png,zero,Bob\n\n1.png, uno ,Cid\n2.png,,\n'
    shards, summary = made(source(pictures, text))
    values = entries(shards)
    assert [v["source"] for v in values] == ["1.png", "0.png", "2.png"]
    assert [shards.read(i, "txt") for i in range(3)] == [b"one, two", b"zero", None]
    assert [v.get("captions") for v in values] == [["one, two", "uno"], None, None]
    assert [v["by"] for v in values] == ["Ann", "Bob", ""]
    assert shards.read_image(0) == (pictures / "1.png").read_bytes()
    assert [(note["name"], note["what"]) for note in summary.notes] == [("2.png", "no caption")]


def test_wrong_rows_are_named_and_left_out(pictures, made):
    text = "image,caption,class\n0.png,a,1\nnot there.png,b,1\n1.png\n2.png,c,red\n,d,1\n3.png,e,1,extra\n"
    shards, summary = made(source(pictures, text, Columns(label="class")))
    assert (len(shards), shards.read(0, "cls")) == (1, b"1")
    assert [(note["name"], note["what"]) for note in summary.notes] == [
        ("not there.png", "missing file"),
        ("t.csv line 4", "bad row"),
        ("t.csv line 5", "bad row"),
        ("t.csv line 6", "bad row"),
        ("t.csv line 7", "bad row"),
    ]
    assert "class 'red' is no whole number" in summary.notes[2]["why"]


def test_json_lines_hold_several_captions_and_further_values(pictures, made, entries):
    lines = [
        json.dumps({"path": "0.png", "captions": ["a", None, "b"], "score": 0.5, "tags": {"x": [1, None]}}),
        "{",
        "[1]",
        "",
        json.dumps({"path": "1.png", "captions": 7}),
        json.dumps({"path": str(pictures / "2.png"), "captions": "c", "score": float("nan")}),
    ]
    shards, summary = made(source(pictures, "\n".join(lines), name="t.jsonl", read=read_jsonl))
    values = entries(shards)
    assert [v["caption"] for v in values] == ["a", "c"]
    assert (values[0]["captions"], values[0]["score"], values[0]["tags"]) == (["a", "b"], 0.5, {"x": [1, None]})
    assert "score" not in values[1]
    assert [note["name"] for note in summary.notes] == ["t.jsonl line 2", "t.jsonl line 3", "t.jsonl line 5"]
    assert "no text but int" in summary.notes[2]["why"]


def test_columns_that_are_missing_are_told_with_those_present(pictures):
    text = "picture,words,class\n0.png,zero,4\n"
    with pytest.raises(InputError, match=r"no usual image column; its columns are 'picture', 'words', 'class'"):
        source(pictures, text)
    with pytest.raises(InputError, match=r"no usual caption column.*--caption-column"):
        source(pictures, text, Columns(image="picture"))
    with pytest.raises(InputError, match=r"no column 'word' \(caption\); its columns are 'picture'"):
        source(pictures, text, Columns(image="picture", caption="word"))
    assert len(source(pictures, text, Columns(image="picture", caption="words"))) == 1
    for columns in (Columns(image="picture", caption=""), Columns(image="picture", label="class")):
        assert next(source(pictures, text, columns).rows(0)).captions == ()
    with pytest.raises(InputError, match="has no rows"):
        source(pictures, "image,caption\n")


def test_a_table_in_another_encoding_is_refused(pictures):
    (pictures / "t.csv").write_bytes("image,caption\n0.png,stra\u00dfe\n".encode("latin-1"))
    for read in (read_csv, read_jsonl):
        with pytest.raises(InputError, match="UTF-8"):
            list(read(pictures / "t.csv"))


def test_a_quote_that_is_not_closed_swallows_no_rows(pictures, made):
    for end in ("", '2.png,"c\n'):
        with pytest.raises(InputError, match=r"after line 1: .*begins with a quote ends with one"):
            source(pictures, f'image,caption\n0.png,"a\n1.png,b\n{end}')
    quoted = source(pictures, 'image,caption\n0.png,"5"" wide,\nred"\n1.png,5" wide\n')
    assert [row.captions for row in quoted.rows(0)] == [('5" wide,\nred',), ('5" wide',)]
    text = 'image\tcaption\n0.png\t"a\n1.png\t"b" c\n'
    shards, _ = made(source(pictures, text, name="t.tsv", read=read_tsv))
    assert [shards.read(i, "txt") for i in range(2)] == [b'"a', b'"b" c']


def test_what_pandas_writes_is_a_table(pictures, made, entries):
    text = ",image,caption,class\n0,0.png,a,2.0\n1,1.png,b,\n2,2.png,c,0.0\n"
    shards, summary = made(source(pictures, text, Columns(label="class")))
    assert [shards.read(i, "cls") for i in range(3)] == [b"2", None, b"0"]
    assert "" not in entries(shards)[0]
    assert summary.notes == []


def test_cells_are_captions_and_classes_or_wrong():
    assert captions_in(" a ") == ("a",)
    assert captions_in(["a", "", None, "b "]) == ("a", "b")
    assert captions_in(None) == captions_in(" ") == ()
    assert [label_of(cell) for cell in ("3", 0, "", None, -1)] == [3, 0, None, None, None]
    assert [label_of(cell) for cell in ("3.0", 0.0, "-1", "-1.0")] == [3, 0, None, None]
    for wrong in ("cat", -2, 1.5, "1.5", "inf", float("nan"), True, [1]):
        with pytest.raises(LeftOutError):
            label_of(wrong)
    with pytest.raises(LeftOutError):
        captions_in(["a", 3])
