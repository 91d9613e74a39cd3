from __future__ import annotations

import pytest

from latentdiff.config.errors import InputError
from latentdiff.data import sample
from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.labels import NO_LABEL, Labels
from latentdiff.data.sample import check_labels, read_sample

NAMES = ("cat", "dog", "7")


@pytest.mark.parametrize(
    ("options", "cls", "attributes", "label"),
    [
        ({}, b"12", {}, 12),
        ({}, b" 3\n", {}, 3),
        ({}, None, {}, NO_LABEL),
        ({}, b"", {}, NO_LABEL),
        ({}, b"-1", {}, NO_LABEL),
        ({"classes": 4}, b"3", {}, 3),
        ({"names": NAMES}, b"dog\n", {}, 1),
        ({"names": NAMES}, b"0", {}, 0),
        ({"names": NAMES}, b"7", {}, 2),
        ({"entry": "kind"}, b"9", {"kind": 5}, 5),
        ({"entry": "kind"}, b"9", {}, NO_LABEL),
        ({"entry": "kind"}, None, {"kind": "6"}, 6),
        ({"entry": "kind", "names": NAMES}, None, {"kind": "cat"}, 0),
    ],
)
def test_where_a_label_stands_and_what_it_means(options, cls, attributes, label):
    assert Labels(**options).of(cls, attributes, "x") == label


@pytest.mark.parametrize(
    ("options", "cls", "attributes", "message"),
    [
        ({"classes": 4}, b"4", {}, r"sample 'a' in b has the unknown class 4 \(.cls\); expected 0 to 3"),
        ({"classes": 4}, b"-2", {}, "unknown class -2"),
        ({}, b"-2", {}, "unknown class -2 .* expected 0 or more"),
        ({"names": NAMES}, b"3", {}, "unknown class 3 .* expected 0 to 2"),
        ({"names": NAMES}, b"cats", {}, "unknown class 'cats' .* did you mean cat"),
        ({"entry": "kind", "classes": 2}, None, {"kind": 2}, "unknown class 2 .'kind' in .json."),
        ({"required": True}, None, {}, r"has no label \(.cls\); add it"),
        ({"required": True, "entry": "kind"}, b"1", {}, "has no label .'kind' in .json."),
        ({"required": True}, b"-1", {}, "has no label"),
    ],
)
def test_unknown_and_missing_classes_stop_the_run(options, cls, attributes, message):
    with pytest.raises(InputError, match=message):
        Labels(**options).of(cls, attributes, "'a' in b")


@pytest.mark.parametrize(
    ("options", "cls", "attributes"),
    [
        ({}, b"cat", {}),
        ({"classes": 3}, b"1.5", {}),
        ({"entry": "kind"}, None, {"kind": 1.5}),
        ({"entry": "kind"}, None, {"kind": True}),
        ({"entry": "kind"}, None, {"kind": [1]}),
    ],
)
def test_what_is_no_label_breaks_the_sample(options, cls, attributes):
    with pytest.raises(BrokenSampleError, match="its label"):
        Labels(**options).of(cls, attributes, "x")


def test_names_and_their_number_must_agree():
    assert Labels(names=NAMES).count == Labels(names=NAMES, classes=3).count == 3
    assert Labels().count is None
    assert Labels(names=NAMES, classes=4).count == 4, "the last has no name"
    with pytest.raises(InputError, match="3 names, more than the 2 classes"):
        Labels(names=NAMES, classes=2)
    with pytest.raises(InputError, match="'cat' is named twice"):
        Labels(names=["cat", "dog", "cat"])
    with pytest.raises(InputError, match="at least 1, got 0"):
        Labels(classes=0)


def labelled(png, image, *stored):
    return [{"png": png(image(i)), **({} if label is None else {"cls": label})} for i, label in enumerate(stored)]


def test_the_set_is_checked_before_any_work(make_set, png, image):
    shards = make_set(labelled(png, image, "0", "1", None, "x", "2"))
    check_labels(shards, Labels(classes=3))  # 'x' is left to reading, as a broken sample
    check_labels(shards, Labels())
    with pytest.raises(InputError, match=r"sample '00000/000000004' in .* unknown class 2 .* 0 to 1"):
        check_labels(shards, Labels(classes=2))
    with pytest.raises(InputError, match=r"1 of 5 samples have no label \(.cls\), first 00000/000000002"):
        check_labels(shards, Labels(required=True))


def test_labels_in_the_json_are_checked_too(make_set, png, image):
    content = [{"png": png(image(i)), "json": {"kind": i} if i != 2 else {"other": 1}} for i in range(4)]
    shards = make_set(content)
    with pytest.raises(InputError, match=r"'00000/000000003' .* unknown class 3"):
        check_labels(shards, Labels(classes=3, entry="kind"))
    with pytest.raises(InputError, match=r"'00000/000000002' in .* has no label \('kind' in .json\)"):
        check_labels(shards, Labels(required=True, entry="kind"))
    with pytest.raises(InputError, match="unknown class 3"):
        read_sample(shards, 3, 1000, Labels(classes=3, entry="kind"))


def test_of_a_large_set_evenly_spread_labels_are_read(make_set, samples, monkeypatch):
    shards = make_set(samples(30))
    monkeypatch.setattr(sample, "_CHECKED_LABELS", 4)
    read = []
    monkeypatch.setattr(shards, "read", lambda index, extension: read.append((index, extension)))
    check_labels(shards, Labels(classes=30))
    assert read == [(0, "cls"), (9, "cls"), (19, "cls"), (29, "cls")]
