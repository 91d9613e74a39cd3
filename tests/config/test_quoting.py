from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from latentdiff.config.quoting import quote_overrides, requote

PARSER = OverridesParser.create()


def read(override: str, *, multirun: bool = False) -> object:
    """What the program would get: through Hydra's grammar and OmegaConf."""
    (quoted,) = quote_overrides([override], multirun=multirun)
    parsed = PARSER.parse_override(quoted)
    assert not parsed.is_sweep_override(), quoted
    cfg = OmegaConf.create({"value": parsed.value(), "folder": "/data"})
    return OmegaConf.to_container(cfg, resolve=True)["value"]


TEXTS = [
    "a red circle",
    "a red circle, left of a box",
    "it's a box",
    'a "large" box',
    "'a' and 'b'",
    '"a", "b"',
    "a = b",
    "a: b",
    "{a}",
    "{a: b}",
    "(a, b)",
    "f(a)",
    "choice(a, b)",
    "  leading",
    "trailing  ",
    "back\\slash",
    "ends in \\",
    "quote after \\'",
    "two \\\\' more",
    "two\nlines",
    "a\ttab",
    "ünïcode, 赤い丸",
    "emoji 🙂",
    "costs $5",
    "costs ${5}",
    "${oc.env:HOME}",
    "\\${x}",
    "\\\\${x}",
    "5",
    "1e-4",
    "true",
    "~x",
    "#1 @home %50 & | ; <tag> !",
    "[a",
    "a]",
    "=",
    ",",
    "'",
]


def test_a_switch_is_no_path():
    assert read("backbone.checkpoint=true") is True
    assert read("first_stage.checkpoint=true") == "true"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("multirun", [False, True])
def test_text_arrives_as_typed(text: str, multirun: bool) -> None:
    if multirun and text.startswith("choice("):
        pytest.skip("choice(...) sweeps in a multirun")
    assert read(f"prompt={text}", multirun=multirun) == text


PATHS = [
    "/a/b=c/{00000..00009}.tar",
    "s3://bucket/{a,b}/x y.tar",
    "/it's/here",
    "/ünï/赤",
    "C:\\data\\x",
    "/a (copy)/x#1",
    "/ends/in\\",
    "auto",
    "007",
    "{0..3}.tar",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", ["checkpoint", "data.train", "first_stage.checkpoint", "+data.val", "++a.path"])
@pytest.mark.parametrize("multirun", [False, True])
def test_path_arrives_as_typed(path: str, key: str, multirun: bool) -> None:
    assert read(f"{key}={path}", multirun=multirun) == path


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.train=a,b", "a,b"),
        ("data.train=[/a/{0..3}.tar,/b=c/{0,1}.tar]", ["/a/{0..3}.tar", "/b=c/{0,1}.tar"]),
        ("prompt=[a red circle, it's a box]", ["a red circle", "it's a box"]),
        ('prompt=["a, b",c]', ["a, b", "c"]),
        ("prompt=[]", []),
        ("prompt='a, b'", "a, b"),
        ('prompt="a, b"', "a, b"),
        ("prompt=null", None),
        ("prompt=", ""),
        ("data.train=${folder}/{0..3}.tar", "/data/{0..3}.tar"),
        ("seeds=[0,1]", [0, 1]),
        ("data.size=64", 64),
        ("optim.lr=1e-4", 1e-4),
    ],
)
def test_lists_quotes_null_and_interpolations_keep_their_meaning(override: str, value: object) -> None:
    assert read(override) == value


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("checkpoint=/a=1,/b{0,1}", ["'/a=1'", "'/b{0,1}'"]),
        ("sampler=ddim,euler", ["ddim", "euler"]),
        ("seed=1,2", ["1", "2"]),
        ("prompt=choice('a, b',c)", ["a\\,\\ b", "c"]),
    ],
)
def test_commas_sweep_in_a_multirun(override: str, values: list[str]) -> None:
    (quoted,) = quote_overrides([override], multirun=True)
    assert list(PARSER.parse_override(quoted).sweep_string_iterator()) == values


@pytest.mark.parametrize(
    ("swept", "expected"),
    [
        (r"prompt=a\,\ b", "prompt='a, b'"),
        ("prompt='it\\'s'", "prompt='it\\'s'"),
        (r"prompt=[a\,\ b,null]", "prompt=['a, b',null]"),
        ("seed=3", "seed=3"),
        ("prompt=null", "prompt=null"),
    ],
)
def test_what_a_sweeper_wrote_is_quoted_for_a_child_process(swept: str, expected: str) -> None:
    assert requote(swept) == expected
    assert quote_overrides([requote(swept)]) == [expected]


@pytest.mark.parametrize("override", [*(f"prompt={text}" for text in TEXTS), *(f"run_dir={path}" for path in PATHS)])
def test_quoting_twice_changes_nothing(override: str) -> None:
    once = quote_overrides([override])
    assert quote_overrides(once) == once
    assert quote_overrides(once, multirun=True) == once


@pytest.mark.parametrize("override", ["~data", "--cfg", "data=shapes", "hydra/launcher=x", "data@other=x", "prompt"])
def test_other_arguments_are_left_alone(override: str) -> None:
    assert quote_overrides([override]) == [override]


def test_nothing_is_chosen_of_a_group_as_hydra_takes_it() -> None:
    assert quote_overrides(["logger=null", "+debug=null", "seed=null"]) == ["logger=[]", "+debug=[]", "seed=null"]
