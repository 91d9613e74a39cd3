"""``latentdiff reference``: what networks see in real images, in a file that evaluations compare with."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from latentdiff.app.composed import composed
from latentdiff.config.errors import InputError

SPLITS = ("train", "val")
USED = ("data", "checkpoint", "metrics", "trainer", "batch_size", "paths", "hydra")
"""Settings of evaluate.py that say something here."""
FEATURES = 10_000
"""Images whose features are kept, unless told otherwise: what precision and recall are taken of."""


@dataclass(frozen=True)
class Wanted:
    """``count``: images, spread evenly over the split; None: all. ``keep``: of how many features are kept."""

    split: str = SPLITS[0]
    count: int | None = None
    keep: int = FEATURES


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds ``reference``."""
    reference = verbs.add_parser(
        "reference",
        help="statistics and features of real images, once; evaluate.py then compares with them: reference=DEST",
        description="The settings are those of evaluate.py: data=... says which images at which size, or "
        "checkpoint=PATH whose data, metrics=... which networks look at them, trainer=... how many processes, "
        "batch_size=... how many images at a time. Other settings of evaluate.py are refused. Beside "
        f"these: split=train|val (default: {SPLITS[0]}), num_images=N (default: all of the split), features=N images "
        f"whose single features are kept (default: {FEATURES}; 0: none). The same command goes on where an interrupted "
        "one stopped.",
    )
    reference.add_argument("dest", metavar="DEST", help="new .npz file")
    reference.add_argument(
        "settings", nargs="+", metavar="KEY=VALUE", help="data=... metrics=... [split=] [num_images=] [features=]"
    )
    reference.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    wanted, settings = _split(arguments.settings)
    dest = Path(arguments.dest)
    if dest.suffix != ".npz":
        raise InputError(f"expected a name that ends in .npz, got '{dest}'")
    if dest.exists():
        raise InputError(f"{dest} exists already; name another file or remove it")
    from latentdiff.app.evaluation.reference_work import make_reference

    try:
        record = make_reference(composed("evaluate", settings), dest, wanted)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on behind the images that are measured", file=sys.stderr)
        raise
    if record is None:
        return
    size, images = dest.stat().st_size / 2**20, record["images"]["size"]
    print(f"{dest}: {size:.1f} MiB, {record['count']} images of {images} pixels by {', '.join(record['extractors'])}")
    print(f"evaluate against it with reference={dest}")


def _split(settings: list[str]) -> tuple[Wanted, list[str]]:
    """This command's own settings, and those of evaluate.py."""
    wanted, others = {}, []
    numbers = {"num_images": ("count", 2), "features": ("keep", 0)}
    for line in settings:
        key, _, value = line.partition("=")
        if key == "split":
            if value not in SPLITS:
                raise InputError(f"split: expected {' or '.join(SPLITS)}, got '{value}'")
            wanted["split"] = value
        elif key in numbers:
            name, least = numbers[key]
            if not value.isdecimal() or int(value) < least:
                raise InputError(f"{key}: expected a whole number of at least {least}, got '{value}'")
            wanted[name] = int(value)
        elif key.lstrip("+~").replace("@", ".").partition(".")[0] not in USED:
            raise InputError(
                f"{key}: a reference does not depend on it; expected split, num_images, features, {', '.join(USED)}"
            )
        else:
            others.append(line)
    return Wanted(**wanted), others
