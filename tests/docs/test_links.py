"""What the documents point to is there: files, headings, places in the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PLACE = re.compile(r"`((?:src|configs|tests|docs|benchmarks|notebooks)/[\w./-]+)(?:[:`])")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(_prose(path)):
        if re.match(r"(https?|mailto):", target):
            continue
        name, _, heading = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name} links to {target}"
        if heading and file.suffix == ".md":
            assert heading in _headings(file), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_places_in_the_repository_are_there(path: Path) -> None:
    for place in PLACE.findall(path.read_text(encoding="utf-8")):
        if re.search(r"/x[./]|/outputs/", place):  # any name; what comes to be
            continue
        assert (ROOT / place).exists() or any(ROOT.glob(place + "*")), f"{path.name} names {place}"


def _prose(path: Path) -> str:
    """The document without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M))


def _headings(path: Path) -> set[str]:
    """As the links to them are written."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
