"""Comparing evaluations: every field of the protocol counts, nothing else does."""

import copy
import json
from io import StringIO

import pytest
import torch
from rich.console import Console

from latentdiff.app import cli
from latentdiff.config.errors import InputError
from latentdiff.diffusion.denoiser import Denoiser
from latentdiff.diffusion.grids import Uniform
from latentdiff.diffusion.guidance import ClassifierFree
from latentdiff.diffusion.parameterization import Velocity
from latentdiff.diffusion.path import RectifiedFlow
from latentdiff.diffusion.samplers.euler import Euler
from latentdiff.evaluation.card import protocol, protocol_card
from latentdiff.evaluation.compare import check_comparable, comparison_table, lines, read_results
from latentdiff.evaluation.engine import Work
from latentdiff.generation.pipeline import LatentPipeline
from latentdiff.metrics.features.random_conv import RandomConvFeatures
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.on_features import OnFeatures
from latentdiff.metrics.reference import MeasuredReference
from latentdiff.metrics.rows import JoinedRows


class Codec:
    channels, factor = 4, 8


def full_card():
    """Of parts that are used in earnest."""
    denoiser = Denoiser(backbone=torch.nn.Linear(1, 1), path=RectifiedFlow(), parameterization=Velocity()).eval()
    pipeline = LatentPipeline(
        denoiser=denoiser,
        conditioner=None,
        codec=Codec(),
        sampler=Euler(),
        grid=Uniform(),
        steps=3,
        guidance=ClassifierFree(scale=2.0),
        image_size=64,
    )
    metric = OnFeatures(features=RandomConvFeatures(), measures=[FrechetDistance()])
    said = protocol(
        generate=pipeline,
        metrics={"frechet": metric},
        conditions={"data": "shapes", "split": "val", "fingerprint": "ab"},
        work=Work(20, 5, seed=1),
        resolution=(64, 64),
    )
    reference = MeasuredReference(JoinedRows([(0, {"pool": torch.zeros(20, 256)})]))
    card = protocol_card(
        model={"checkpoint": "runs/a", "digest": "aa", "weights": "ema"},
        protocol=said,
        references={"frechet": reference},
        observed={"images_sha256": "cd", "duplicates": 0},
        config={"values": {"seed": 1}},
        world_size=1,
        device="cpu",
        wall_seconds=3.0,
    )
    return json.loads(json.dumps(card))


CARD = full_card()


def places(value, where=()):
    """Where the plain values of a tree are."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [place for name, child in children for place in places(child, (*where, name))]
    return found or [where]


def changed(card, where):
    """The card with another value there."""
    card = copy.deepcopy(card)
    *owners, last = where
    owner = card
    for name in owners:
        owner = owner[name]
    value = owner[last]
    owner[last] = value + "x" if isinstance(value, str) else [value] if isinstance(value, (dict, list)) else not value
    return card


EVERY_FIELD = [("protocol", *where) for where in places(CARD["protocol"])]


def test_a_full_card_has_the_fields_that_the_field_names():
    keys = {".".join(map(str, where)) for where in EVERY_FIELD}
    assert len(keys) >= 30
    assert "protocol.generation.to_uint8" in keys
    for key in ("generation.guidance.scale", "generation.steps", "generation.precision", "seeds.base", "samples.count"):
        assert f"protocol.{key}" in keys


@pytest.mark.parametrize("where", EVERY_FIELD, ids=lambda where: ".".join(map(str, where)))
def test_one_other_field_of_the_protocol_is_refused_and_named(where):
    other = changed(CARD, where)
    with pytest.raises(InputError) as refused:
        check_comparable([CARD, other])
    named = [line.strip().partition(":")[0] for line in str(refused.value).splitlines() if line.startswith("  ")]
    whole = ".".join(map(str, where))
    assert len(named) == 1
    assert whole == named[0] or whole.startswith(f"{named[0]}."), "of a list the whole"
    assert len(check_comparable([CARD, other], named)) == 1


@pytest.mark.parametrize("where", [(*top, last) for *top, last in EVERY_FIELD if isinstance(last, str)], ids=str)
def test_a_field_that_is_missing_is_refused(where):
    other = copy.deepcopy(CARD)
    owner = other
    for name in where[:-1]:
        owner = owner[name]
    del owner[where[-1]]
    for cards in ([CARD, other], [other, CARD]):
        with pytest.raises(InputError, match="absent"):
            check_comparable(cards)


@pytest.mark.parametrize("part", ["model", "observed", "environment", "config"])
def test_the_other_parts_may_differ(part):
    for where in places(CARD[part]):
        assert check_comparable([CARD, changed(CARD, (part, *where))]) == []


def test_a_parent_permits_what_is_below_it_and_a_mistyped_key_nothing():
    other = changed(changed(CARD, ("protocol", "seeds", "base")), ("protocol", "seeds", "first"))
    assert [each.key for each in check_comparable([CARD, other], ["protocol.seeds"])] == [
        "protocol.seeds.base",
        "protocol.seeds.first",
    ]
    with pytest.raises(InputError, match=r"no card has 'protocol.seed'; did you mean protocol.seeds"):
        check_comparable([CARD, other], ["protocol.seed"])
    with pytest.raises(InputError, match=r"protocol.seeds.first: 4294967296 \| false"):
        check_comparable([CARD, other], ["protocol.seeds.base"])


def results(distance, sd=None, **more):
    found = {"results": {"frechet": {"fd": distance, "curve": [1, 2], "count": 3}, **more}, "card": CARD}
    return found if sd is None else {**found, "repeats": {"count": 3, "sd": {"frechet": {"fd": sd}}}}


def test_differences_in_standard_deviations_of_one_evaluation():
    a, b = results(10.0, sd=3.0), results(5.0, sd=4.0, only={"x": 0.5})
    fd, count, only = lines([a, b])
    assert (fd.name, fd.values, fd.change(1)) == ("frechet.fd", (10.0, 5.0), -5.0)
    assert fd.change_in_sds(1) == pytest.approx(-5 / 12.5**0.5)
    assert (count.values, count.change_in_sds(1)) == ((3, 3), None)
    assert (only.values, only.change(1)) == ((None, 0.5), None)
    assert lines([a, results(5.0)])[0].change_in_sds(1) is None, "one of them was not repeated"
    assert lines([results("inf"), b])[0].change(1) == -float("inf")


def test_the_table_says_what_was_permitted():
    permitted = check_comparable([CARD, changed(CARD, ("protocol", "seeds", "base"))], ["protocol.seeds.base"])
    out = StringIO()
    found = [results(1.0, sd=0.5, small={"kid": 5e-4}), results(2.0, sd=0.5, small={"kid": 5.1e-4})]
    table = comparison_table(["run[1]", "run[2]"], found, permitted)
    Console(file=out, width=120, markup=False).print(table)
    for text in (
        "frechet.fd",
        "1.0000",
        "kid",
        "0.0005",
        "+1e-05",
        "+1.0000",
        "+2.0",
        "A: run[1]",
        "protocol.seeds.base: 1 | false",
        "means of 3",
    ):
        assert text in out.getvalue()


@pytest.fixture
def runs(tmp_path):
    def write(name, found):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(found))
        return str(tmp_path / name)

    return write


def test_the_command(runs, capsys):
    other = {**results(2.0), "card": changed(CARD, ("protocol", "generation", "guidance", "scale"))}
    a, b, c = runs("a", results(1.0)), runs("b", results(2.5)), runs("c", other)
    assert cli.main(["compare", a, f"{b}/results.json"]) == 0
    assert "+1.5000" in capsys.readouterr().out
    assert cli.main(["compare", a, b, c]) == 2
    assert "protocol.generation.guidance.scale: 2.0 | 2.0 | false" in capsys.readouterr().err
    assert cli.main(["compare", a, b, c, "--differ", "protocol.generation.guidance.scale"]) == 0
    assert "the protocols differ, as permitted" in capsys.readouterr().out
    assert cli.main(["compare", a]) == 2


def test_what_is_no_evaluation_of_this_version(runs, tmp_path):
    with pytest.raises(InputError, match=r"cannot be read .*give a results.json"):
        read_results(tmp_path / "absent")
    old = runs("old", {"results": {}, "card": {"schema": 1}})
    with pytest.raises(InputError, match="has a card of schema 1, a whole one of schema 2 is wanted"):
        read_results(old)
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        read_results(tmp_path / "text.json")
