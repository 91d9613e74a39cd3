"""A model in the format of another program, or as one folder of ours; each folder with a card that says what it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from latentdiff import durable
from latentdiff.app.export.foreign import Export, Format, Options, first_stage, place_of, second_stage
from latentdiff.app.export.model_card import write_card
from latentdiff.app.export.model_facts import Facts, Told, facts_of
from latentdiff.checkpoint import bundle, store
from latentdiff.checkpoint.foreign import reading as foreign
from latentdiff.checkpoint.foreign.weights import SAFE, check_file_name, open_weights
from latentdiff.config.errors import InputError


@dataclass(frozen=True)
class Exported:
    """``what`` was written, and ``notes`` for the reader of the files."""

    what: str
    notes: list[str]


def export(
    checkpoint: str | Path, dest: str | Path, *, form: Format, options: Options | None = None, told: Told | None = None
) -> Exported:
    """Writes the averaged weights of ``checkpoint`` to ``dest``.

    ``diffusers``: a new folder, of a first stage alone (AutoencoderKL, VQModel), of a second with its first stage where
    diffusers has a pipeline that computes the same, or of its UNet alone where the options ask for that. ``ldm``: a new
    .safetensors file in LDM's layout, of a first stage, of a UNet, or as a whole single file of Stable Diffusion.
    ``latentdiff``: see ``checkpoint.bundle``. Folders hold a model card with what is ``told`` and what is known.

    ``checkpoint`` may also be another program's autoencoder, so that one format becomes the other. Nothing is written
    over, and a failed export leaves nothing behind.

    Raises InputError where ``checkpoint`` is neither, the format cannot hold it, or ``dest`` stands already.
    """
    dest, options = Path(dest), options or Options()
    if os.path.lexists(dest):
        raise InputError(f"'{dest}' stands already and is not overwritten; name another place, or remove it")
    is_foreign = foreign.recognises(checkpoint)
    kind = "autoencoder" if is_foreign else store.read_manifest(place_of(checkpoint)).kind
    options.check(form, is_foreign=is_foreign, kind=kind)
    if form == "ldm":
        check_file_name(dest)
    has_card = not is_foreign and form != "ldm"
    if told is not None and told != Told() and not has_card:
        raise InputError("--license and --results are for the model card, which folders made of our checkpoints get")
    facts = facts_of(place_of(checkpoint), told or Told(), first_stage=options.first_stage) if has_card else None
    made = _export(checkpoint, form, kind, options, None if facts is None else facts.kept)
    with _told(dest), _no_empty_parents(dest):
        if form == "ldm":
            return Exported(made.what, made.write(dest))
        with durable.new_directory(dest, check=_reread) as staged:
            notes = made.write(staged)
            if facts is not None:
                write_card(facts, staged, what=made.what, form=form, notes=notes)
    return Exported(made.what, [*notes, *_to_look_at(facts)])


def _export(
    checkpoint: str | Path, form: Format, kind: str, options: Options, about: Mapping[str, object] | None
) -> Export:
    if form == "latentdiff":
        settings = {"first_stage": options.first_stage, "with_text_encoder": options.with_text_encoder}
        return Export("model", lambda folder: bundle.fill(checkpoint, folder, about=about, **settings))
    return (second_stage if kind == "diffusion" else first_stage)(checkpoint, form, options)


def _to_look_at(facts: Facts | None) -> list[str]:
    """What the files tell that its owner may not want to publish."""
    places = [] if facts is None else [facts.select(f"data.{split}") for split in ("train", "val")]
    named = ", ".join(str(place) for place in places if place)
    return [f"the files name the training data as the run did: {named}"] if named else []


def _reread(folder: Path) -> None:
    """Opens every file of weights again. Raises InputError where one is not whole."""
    for file in folder.rglob(f"*{SAFE}"):
        open_weights(file)


@contextmanager
def _told(dest: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"'{dest}' cannot be written ({why}); name another place") from error


@contextmanager
def _no_empty_parents(dest: Path) -> Iterator[None]:
    """Removes the folders above ``dest`` that were made for it where the block fails."""
    absent = [folder for folder in dest.parents if not folder.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for folder in absent:
                folder.rmdir()
        raise
