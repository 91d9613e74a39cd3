"""COCO's caption annotations (arXiv:1405.0312; format: cocodataset.org/#format-data)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from latentdiff.config.errors import InputError
from latentdiff.data.making.columns import TableRow
from latentdiff.data.making.source import Row, stamp

_KEPT = {"id": "coco_id", "coco_url": "url", "flickr_url": "flickr_url"}
_OF_LICENCE = {"name": "license", "url": "license_url"}
"""Entry of an image, of its licence -> its name in the ``.json``."""


class CocoSource:
    """The images of an annotation file in its order, each with all of its captions; the files lie in ``folder``.

    Number, addresses and licence of each image are kept in the ``.json``. Raises InputError where the file is no such
    annotation or has no captions (instances, panoptic and keypoints have none), or ``folder`` is missing.
    """

    classes = None

    def __init__(self, file: str | Path, folder: str | Path) -> None:
        self.file = Path(file)
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"--images: {folder} is not a folder; expected the one with COCO's images")
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            captions: dict[object, list[str]] = defaultdict(list)
            for annotation in content["annotations"]:
                if "caption" in annotation:
                    captions[annotation["image_id"]].append(str(annotation["caption"]).strip())
            licences = {entry["id"]: entry for entry in content.get("licenses", ())}
            self._rows = [_row(image, captions[image["id"]], licences, self.folder) for image in content["images"]]
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{file} is not a COCO annotation ({type(error).__name__}: {error}); expected 'images' with id and "
                "file_name, and 'annotations' with image_id and caption"
            ) from error
        if not any(captions.values()):
            raise InputError(f"{file} holds no captions; expected COCO's captions_*.json")

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, start: int) -> Iterator[Row]:
        yield from self._rows[start:]

    def identity(self) -> dict[str, object]:
        return {"coco": stamp(self.file.resolve()), "folder": str(self.folder.resolve())}


def _row(image: dict, captions: list[str], licences: dict, folder: Path) -> TableRow:
    values = {name: image[entry] for entry, name in _KEPT.items() if entry in image}
    licence = licences.get(image.get("license"), {})
    values |= {name: licence[entry] for entry, name in _OF_LICENCE.items() if entry in licence}
    name = image["file_name"]
    return TableRow(name, folder, name, tuple(caption for caption in captions if caption), values)
