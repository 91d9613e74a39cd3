"""Encoding a data set shard by shard: by several processes, resumable, complete when it appears."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import distributed

import latentdiff
from latentdiff import durable
from latentdiff.app.data.cache_encoder import CacheEncoder, ImagesAndTexts, batches
from latentdiff.app.run import cached_run, preflight
from latentdiff.app.run import first_stage as stage_one
from latentdiff.checkpoint.models import first_stage_record, load_codec
from latentdiff.config.errors import InputError
from latentdiff.config.instantiate import build
from latentdiff.data.cached import EMPTY_TEXT, SETS, CacheManifest, dump_text
from latentdiff.data.datamodule import DataModule
from latentdiff.data.index import INDEX_NAME, index_shards
from latentdiff.data.making.work import take
from latentdiff.data.shard_files import sha256_of
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.shards import refuse_occupied, write_shard
from latentdiff.data.stream import too_many

_log = logging.getLogger(__name__)
_COMMAND, _MADE, _DONE = "command.json", "cache", "done"
_PATIENCE = timedelta(days=7)
"""For the other processes: a share of a large set takes long."""


@dataclass(frozen=True)
class Piece:
    """The samples of one shard of the source, which become one shard of the cache: the order of samples is kept."""

    name: str
    """The set."""
    number: int
    shards: ShardSet

    def done(self, work: Path) -> Path:
        """What the piece has become, as JSON; there when its shard is complete."""
        return work / _DONE / f"{self.name}-{self.number:05d}.json"


def make_cache(cfg: DictConfig, dest: Path, *, dtype: str, captions: int | None, batch: int) -> CacheManifest | None:
    """Encodes the training and the validation samples of ``cfg`` to the folder ``dest``; None but in the first process.

    Raises InputError for what cannot be cached, where ``dest`` is not empty, and where an interrupted command that
    differs stands in the way.
    """
    first = _checked(cfg)
    refuse_occupied(dest)
    with _processes() as (rank, ranks):
        data: DataModule = build(cfg.data.module)
        if rank == 0:
            data.prepare_data()
        _wait()
        data.setup()
        encoder = cached_run.frozen_encoder(cfg)
        manifest = CacheManifest(
            image_size=data.image_size,
            latent=first.latent,
            first_stage=first_stage_record(first.path, first.statistics),
            dtype=dtype,
            mirrored=data.flip,
            text=None if encoder is None else cached_run.identity(encoder),
            captions=captions,
            source={name: shards.fingerprint() for name, shards in _sets(data).items()},
            index={},
            left_out=0,
            made_with={"latentdiff": latentdiff.__version__, "torch": torch.__version__},
        )
        work = dest.absolute().parent / f".{dest.name}.caching"
        with _taken_up(work, manifest, first=rank == 0):
            _wait()
            device = _device(cfg)
            codec = load_codec(first.path, statistics=first.statistics).to(device)
            text = None if encoder is None else build(encoder).to(device).eval()
            encode = CacheEncoder(codec, text, device=device, dtype=dtype, mirrored=data.flip, captions=captions)
            pieces = _pieces(data)
            _encode(
                [piece for piece in pieces[rank::ranks] if not piece.done(work).exists()], data, encode, work, batch
            )
            _wait()
            if rank == 0:
                return _finish(work, dest, pieces, manifest, encode, data.max_broken)
    return None


def _checked(cfg: DictConfig) -> stage_one.Named:
    """The first stage of a configuration that can be cached."""
    preflight.check_numbers(cfg)
    if cfg.first_stage is None:
        raise InputError("experiment: only the second stage is trained on latents; name one of its experiments")
    for key in ("buckets", "weights"):
        if cfg.data.get(key) is not None:
            raise InputError(f"data.{key}: a cache holds squares of one size, in equal shares; leave it null")
    for key in ("readers", "resampled"):
        if cfg.data.module.get(key) is not None:
            raise InputError("data: latents are encoded from indexed images; choose data=webdataset or data=shapes")
    cached_run.refuse_conditions(cfg)
    if cfg.first_stage.checkpoint == "auto":
        raise InputError(
            "first_stage.checkpoint: name the first stage that is to encode; train one with experiment=ae_kl"
        )
    first = stage_one.planned(cfg, None)
    preflight.check_latents(cfg, first.latent)
    return first


def _sets(data: DataModule) -> dict[str, ShardSet]:
    return dict(zip(SETS, (data.train_set, data.val_set)))


def _pieces(data: DataModule) -> list[Piece]:
    found = []
    for name, shards in _sets(data).items():
        shard_of = shards.shard_of()
        for number, shard in enumerate(np.unique(shard_of)):
            found.append(Piece(name, number, shards.select(np.flatnonzero(shard_of == shard))))
    return found


def _encode(pieces: list[Piece], data: DataModule, encode: CacheEncoder, work: Path, batch: int) -> None:
    total = sum(len(piece.shards) for piece in pieces)
    columns = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=_rank() > 0) as bar:
        task = bar.add_task("", total=total)
        for piece in pieces:
            _write(piece, data, encode, work, batch, lambda count: bar.advance(task, count))


def _write(
    piece: Piece, data: DataModule, encode: CacheEncoder, work: Path, batch: int, advance: Callable[[int], None]
) -> None:
    """Writes the piece's shard beside its place and moves it there; then notes that it is done."""
    left_out: list[str] = []

    def samples() -> Iterator[dict]:
        reader = ImagesAndTexts(piece.shards, data.fixed_reader(piece.shards))
        for found in batches(reader, batch, data.num_workers):
            usable = [one for one in found if not isinstance(one, str)]
            left_out.extend(one for one in found if isinstance(one, str))
            yield from encode(usable) if usable else ()
            advance(len(found))

    folder = work / _MADE / piece.name
    scratch = work / f"rank-{_rank()}"
    scratch.mkdir(exist_ok=True)
    info = write_shard(scratch, piece.number, samples())
    for what in left_out:
        _log.warning("left out %s", what)
    if info.samples:
        os.replace(scratch / info.name, folder / info.name)
    shutil.rmtree(scratch)
    durable.put_file(piece.done(work), json.dumps({"samples": info.samples, "left_out": left_out}).encode())


def _finish(
    work: Path, dest: Path, pieces: list[Piece], manifest: CacheManifest, encode: CacheEncoder, max_broken: float
) -> CacheManifest:
    left_out = sum(_left_out(work, pieces, name, max_broken) for name in SETS)
    made = work / _MADE
    for name in SETS:
        index_shards(str(made / name))
    if (empty := encode.empty_text()) is not None:
        durable.put_file(made / EMPTY_TEXT, dump_text(empty))
    values = {**vars(manifest), "left_out": left_out}
    values["index"] = {name: sha256_of(made / name / INDEX_NAME) for name in SETS}
    complete = CacheManifest(**values)
    complete.save(made)
    refuse_occupied(dest)
    os.rename(made, dest)
    shutil.rmtree(work)
    return complete


def _left_out(work: Path, pieces: list[Piece], name: str, max_broken: float) -> int:
    """Samples of a set that are in no shard. Raises InputError where they are too many."""
    own = [piece for piece in pieces if piece.name == name]
    found = [what for piece in own for what in json.loads(piece.done(work).read_text(encoding="utf-8"))["left_out"]]
    total = sum(len(piece.shards) for piece in own)
    if too_many(len(found), total, max_broken):
        raise InputError(
            f"{len(found)} of {total} samples of {name} are broken, more than data.module.max_broken allows "
            f"({max_broken}); the last was {found[-1]}. Mend them or raise it, and give the command again: it "
            "goes on with what is encoded"
        )
    return len(found)


@contextmanager
def _taken_up(work: Path, manifest: CacheManifest, *, first: bool) -> Iterator[None]:
    """The hidden folder of this work, kept where it ends with an error, to go on there."""
    if not first:
        yield
        return
    for folder in (*(work / _MADE / name for name in SETS), work / _DONE):
        folder.mkdir(parents=True, exist_ok=True)
    with open(work / _COMMAND, "a+", encoding="utf-8") as file:
        take(file, f"another process is at work in {work}; wait for it or name another DEST")
        wanted = json.dumps(vars(manifest), sort_keys=True)
        file.seek(0)
        if (begun := file.read()) and begun != wanted:
            before, now = json.loads(begun), json.loads(wanted)
            changed = ", ".join(key for key in now if before.get(key) != now[key])
            raise InputError(
                f"{work} holds the shards of an interrupted command that differs in {changed}; give the same command "
                "to go on, or remove that folder to begin anew"
            )
        if not begun:
            file.write(wanted)
            file.flush()
        yield


def _device(cfg: DictConfig) -> torch.device:
    if cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def _processes() -> Iterator[tuple[int, int]]:
    """(rank, ranks) of the processes that torchrun has started."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield _rank(), distributed.get_world_size()
    finally:
        distributed.destroy_process_group()


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _wait() -> None:
    """For the other processes. Raises InputError where one has ended: it has said why."""
    if not distributed.is_initialized():
        return
    try:
        distributed.barrier()
    except RuntimeError as error:
        raise InputError("another process of this command has ended; see its message") from error
