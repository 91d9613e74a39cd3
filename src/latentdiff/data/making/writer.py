"""Any source of images to shards: several processes, resumable, the same bytes whatever happens on the way."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from latentdiff.config.errors import InputError
from latentdiff.data.making.images import Preparation
from latentdiff.data.making.sample import Made, make_sample
from latentdiff.data.making.source import ImageSource
from latentdiff.data.making.work import Progress, Work, work_beside
from latentdiff.data.parallel import mapped
from latentdiff.data.shard_table import printable
from latentdiff.data.shards import write_index, write_shard
from latentdiff.data.worker import available_cores

LEFT_OUT_NAME = "left_out.jsonl"
CLASSES_NAME = "classes.json"
_VERSION = 1
_CHUNK = 8
"""Rows that go to a process at a time."""


@dataclass(frozen=True)
class Summary:
    """What became of a source's rows."""

    samples: int
    shards: int
    bytes: int
    notes: list[dict]
    """Rows that were left out or of which something is to be known: name, what, why; also in ``left_out.jsonl``."""
    resumed: int
    """Samples that an interrupted command had written already."""

    def counts(self) -> dict[str, int]:
        """Kind of note -> how many."""
        return dict(Counter(note["what"] for note in self.notes))


def make_shards(
    source: ImageSource,
    dest: str | Path,
    *,
    preparation: Preparation | None = None,
    samples_per_shard: int = 1000,
    keep_duplicates: bool = False,
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Writes the rows of ``source``, in its order, to ``dest/00000.tar`` ... in img2dataset's layout.

    Beside them: the index, ``classes.json`` where the source names classes, and ``left_out.jsonl``, one line for every
    row that gave no sample or a sample to be looked at. Of rows whose image files are equal byte by byte only the
    first is written, unless ``keep_duplicates``; both are noted. ``progress`` is called with the number of rows dealt
    with. ``processes``: all cores where None; about 0.3 KB of memory are needed per image besides.

    ``dest`` appears at the end, complete. After an interruption the same call goes on behind the last complete shard;
    the result is the same, byte by byte. Raises InputError where ``dest`` is not empty, an interrupted call with other
    arguments stands in the way, or no row gives a sample.
    """
    if not 1 <= samples_per_shard <= 10_000:
        raise InputError(f"samples_per_shard: expected 1 to 10000, got {samples_per_shard}")
    if processes is not None and processes < 1:
        raise InputError(f"processes: expected at least 1, got {processes}")
    preparation = preparation or Preparation()
    command = {"version": _VERSION, **asdict(preparation)}
    command |= {f"source's {name}": value for name, value in source.identity().items()}
    command |= {"samples_per_shard": samples_per_shard, "keep_duplicates": keep_duplicates}
    with work_beside(Path(dest)) as work:
        work.begin(command)
        resumed = work.progress.written
        prepare = partial(make_sample, preparation=preparation)
        rows = source.rows(work.progress.rows)
        with closing(mapped(prepare, rows, processes or available_cores(), chunk=_CHUNK)) as made:
            _write(work, _counted(made, work.progress, progress), samples_per_shard, keep_duplicates)
        _finish(work, source)
    infos = work.progress.infos
    return Summary(sum(i.samples for i in infos), len(infos), sum(i.bytes for i in infos), work.progress.notes, resumed)


def _counted(made: Iterator[Made], state: Progress, progress: Callable[[int], None] | None) -> Iterator[Made]:
    for one in made:
        state.rows += 1
        if progress is not None:
            progress(state.rows)
        yield one


def _write(work: Work, made: Iterator[Made], per_shard: int, keep_duplicates: bool) -> None:
    kept = _kept(made, work.progress, keep_duplicates)
    while (first := next(kept, None)) is not None:
        number = len(work.progress.infos)
        digests: list[str] = []
        numbered = enumerate(chain([first], islice(kept, per_shard - 1)))
        info = write_shard(work.shards, number, (_keyed(one, f"{number:05d}{i:04d}", digests) for i, one in numbered))
        work.record(info, digests)


def _kept(made: Iterator[Made], state: Progress, keep_duplicates: bool) -> Iterator[Made]:
    """Those that become samples; what is to be known of rows goes to ``state.notes``."""
    for one in made:
        first = state.digests.setdefault(one.digest, state.written) if one.sample else state.written
        kept = one.sample is not None and (keep_duplicates or first == state.written)
        if first != state.written:
            outcome = "written all the same" if kept else "left out"
            why = f"the same bytes as the image of sample {first} (from 0); {outcome}"
            state.notes.append({"name": one.name, "what": "duplicate", "why": why})
        if one.what and (kept or one.sample is None):
            state.notes.append({"name": one.name, "what": one.what, "why": one.why})
        if kept:
            state.written += 1
            yield one


def _keyed(made: Made, key: str, digests: list[str]) -> dict:
    digests.append(made.digest)
    return {**made.sample, "__key__": key, "json": {**made.sample["json"], "key": key}}


def _finish(work: Work, source: ImageSource) -> None:
    notes = work.progress.notes
    if not work.progress.infos:
        first = f", first {printable(notes[0]['name'])}: {printable(notes[0]['why'])}" if notes else ""
        raise InputError(f"none of the {len(source)} rows gives a sample{first}")
    if source.classes is not None:
        _write_file(work.shards / CLASSES_NAME, json.dumps(list(source.classes), ensure_ascii=False, indent=1) + "\n")
    if notes:
        lines = (json.dumps(note, ensure_ascii=False) + "\n" for note in notes)
        _write_file(work.shards / LEFT_OUT_NAME, "".join(lines))
    write_index(work.shards, work.progress.infos)


def _write_file(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
