"""sample.py on a tiny model: images made again from what they say, killed calls, several processes, refused cards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

ASKED = ("sampler=dpmpp_2m", "sampler.steps=3", "guidance.scale=2.5", "trajectory=true")
ROWS = '{"prompt": "a red circle, ${x}", "seed": 4}\n{"prompt": "", "seed": 5}\n{"prompt": "a ring", "seed": 4}\n'


def pictures(folder: Path) -> dict[str, bytes]:
    """All but what tells of the command and the machine."""
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.suffix == ".png"}


@pytest.fixture(scope="module")
def made(programs, ldm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of two prompts and a negative one, in batches of 4."""
    where = tmp_path_factory.mktemp("sampled") / "run"
    prompts = ("prompt=[a red circle,'b=c, {d}']", "negative_prompt=a ring", "seeds=[3,1,2]", "batch_size=4")
    programs.done("sample", *programs.use, f"checkpoint={ldm}", *ASKED, *prompts, "size=[16,24]", f"run_dir={where}")
    return where


def test_samples_json_lists_what_the_pngs_say(made: Path) -> None:
    record = json.loads((made / "samples.json").read_text())
    assert [(image["file"], image["seed"], image["prompt"]) for image in record["images"]] == [
        (f"{i:04d}-seed{seed}.png", seed, prompt)
        for i, (prompt, seed) in enumerate((p, s) for p in ("a red circle", "b=c, {d}") for s in (3, 1, 2))
    ]
    told = (record["sampler"]["name"], record["steps"], record["guidance"]["scale"], record["size"])
    assert told == ("DPMSolverPP2M", 3, 2.5, [16, 24])
    model = record["model"]
    assert (model["weights"], len(model["digest"]), model["batches_seen"]) == ("ema", 64, 4)
    assert {"latentdiff", "torch"} <= record["code"].keys()
    for image in record["images"]:
        with Image.open(made / image["file"]) as opened:
            assert opened.size == (24, 16)
            assert json.loads(opened.text["latentdiff"]) == {**record, "images": [image]}
            assert opened.text["negative_prompt"] == "a ring"


def test_all_images_are_made_again_from_their_list(programs, made: Path, tmp_path: Path) -> None:
    card = (f"card={made / 'samples.json'}", "trajectory=true", f"run_dir={tmp_path / 'again'}")
    programs.done("sample", *programs.use, *card)
    assert pictures(tmp_path / "again") == pictures(made)
    assert (tmp_path / "again" / "samples.json").read_bytes() == (made / "samples.json").read_bytes()


def test_one_image_is_made_again_from_itself(programs, made: Path, tmp_path: Path) -> None:
    name = "0004-seed1.png"
    programs.done("sample", *programs.use, f"card={made / name}", f"run_dir={tmp_path}")
    assert pictures(tmp_path)[name] == (made / name).read_bytes()
    assert [path.name for path in tmp_path.glob("0*")] == [name]


def test_the_same_call_makes_what_is_missing(programs, made: Path, tmp_path: Path) -> None:
    card = (*programs.use, f"card={made / 'samples.json'}", f"run_dir={tmp_path}")
    programs.done("sample", *card)
    before = pictures(tmp_path)
    kept = tmp_path / "0000-seed3.png"
    stands = kept.stat().st_mtime_ns
    (tmp_path / "0005-seed2.png").unlink()
    outcome = programs.done("sample", *card)
    assert "6 images (5 stood there) and grid.png" in outcome.out
    assert pictures(tmp_path) == before
    assert kept.stat().st_mtime_ns == stands
    outcome = programs("sample", *programs.use, f"card={made / '0000-seed3.png'}", f"run_dir={tmp_path}")
    assert outcome.code == 2
    assert "holds images made otherwise: images.0001-seed1.png" in outcome.err
    assert pictures(tmp_path) == before


@pytest.mark.slow
def test_two_processes_make_the_same_files(programs, ldm: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    asked = (f"checkpoint={ldm}", f"prompts={tmp_path / 'rows.jsonl'}", *ASKED, "batch_size=2")
    two = programs.start("sample", *programs.use, *asked, "trainer=ddp_cpu", f"run_dir={tmp_path / 'two'}")
    programs.done("sample", *programs.use, *asked, f"run_dir={tmp_path / 'one'}")
    out, err = two.communicate(timeout=200)
    assert two.returncode == 0, err
    assert out.count("3 images and grid.png in") == 1
    one = pictures(tmp_path / "one")
    assert sorted(one)[:3] == ["0000-seed4.png", "0001-seed5.png", "0002-seed4.png"]
    assert pictures(tmp_path / "two") == one
    assert (tmp_path / "two" / "samples.json").read_bytes() == (tmp_path / "one" / "samples.json").read_bytes()


CARDS = {
    "another setting": (
        lambda made, other: [f"card={made / 'samples.json'}", "seeds=[1]"],
        "seeds: the images are made",
    ),
    "another model": (
        lambda made, other: [f"card={made / 'samples.json'}", f"checkpoint={other}"],
        "this is not what '.*samples.json' was made by: model.digest",
    ),
    "no card": (lambda made, other: [f"card={made / 'grid.png'}"], "grid.png' does not say how its images were made"),
}


@pytest.fixture(scope="module")
def other(programs, ldm: Path, autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same make after one batch less."""
    where = tmp_path_factory.mktemp("other") / "run"
    shorter = ("max_batches=1", "validate_every=1", f"first_stage.checkpoint={autoencoder}", f"run_dir={where}")
    programs.done("train", *programs.stage_two, *shorter)
    return where


@pytest.mark.parametrize("case", CARDS)
def test_cards_that_are_refused(refused, programs, made: Path, other: Path, tmp_path: Path, case: str) -> None:
    overrides, message = CARDS[case]
    refused("sample", [*programs.use, *overrides(made, other), f"run_dir={tmp_path}"], message)


def edited(made: Path, folder: Path, **settings: object) -> Path:
    record = json.loads((made / "samples.json").read_text())
    record["settings"] |= settings
    path = folder / "samples.json"
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance": {"_target_": "os.system", "command": "true"}}, "guidance.*_target_.*os.system"),
        ({"sampler": None}, "card: .* has no 'sampler' as sample.py writes it"),
        ({"batch_size": "all"}, "card: .*samples.json': settings.batch_size: expected int, got 'all'"),
        ({"strength": "${oc.env:HOME}"}, "card: the settings in .* hold interpolations"),
    ],
)
def test_a_strangers_card_is_checked(
    refused, programs, made: Path, tmp_path: Path, tmp_path_factory, settings: dict, message: str
) -> None:
    card = edited(made, tmp_path_factory.mktemp("edited"), **settings)
    refused("sample", [*programs.use, f"card={card}", f"run_dir={tmp_path}"], message)
