"""``manifest.json``: what a checkpoint is, how far training had come, and what its files have to be."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from latentdiff.config.errors import InputError

MANIFEST = "manifest.json"
KINDS = {"autoencoder": "stage one", "diffusion": "stage two", "classifier": "noisy classifier"}
WEIGHTS: dict[str, str] = {"model": "model.safetensors", "ema": "ema.safetensors"}
FORMAT = 2
EXPORTED = "exported_from"
"""Key of ``extra`` in a checkpoint that holds the averaged weights of another alone: the other's ``versions`` and
``saved_at``, and by what it stays known: ``model``, the sha256 of the trained weights that are left out, or of another
program's first stage its ``digest``."""


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` holds."""

    kind: str
    """A key of ``KINDS``."""
    counters: dict[str, int]
    """How far training has come: ``batches_seen`` and ``images_seen``."""
    files: dict[str, dict]
    """File name -> {"size": bytes, "sha256": hexadecimal}."""
    world_size: int = 1
    first_stage: dict | None = None
    """Stage two: {"path": str, "hash": digest of the stage-one checkpoint}."""
    latent: dict | None = None
    """{"channels": int, "factor": int}."""
    versions: dict[str, str] = field(default_factory=dict)
    data: dict | None = None
    """What a run that can be resumed was trained on: {"fingerprint": of the training samples}."""
    saved_at: float = 0.0
    """Seconds since 1970."""
    extra: dict = field(default_factory=dict)
    """Free: metric values and the like, whatever JSON holds."""
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """Identity of the weights: sha256 over the sha256 of the model and of its average. An exported model has that
        of its origin as long as its average is the same."""
        origin = self.extra.get(EXPORTED, {})
        if self.kind == "autoencoder" and "digest" in origin:
            return origin["digest"]
        hashes = {part: self.files[name]["sha256"] for part, name in WEIGHTS.items() if name in self.files}
        if "model" in origin:
            hashes["model"] = origin["model"]
        listed = "".join(f"{part}:{sha}\n" for part, sha in hashes.items())
        return hashlib.sha256(listed.encode()).hexdigest()

    @property
    def origin(self) -> dict:
        """What an export of it keeps under ``EXPORTED``."""
        own = {"model": self.files[WEIGHTS["model"]]["sha256"], "versions": self.versions, "saved_at": self.saved_at}
        return self.extra.get(EXPORTED, own)

    @property
    def text(self) -> str:
        """The file: the entries and, under ``sha256``, the hash of them all. Any other byte in it is damage."""
        entries = asdict(self)
        own = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
        return json.dumps({**entries, "sha256": own}, indent=2) + "\n"

    def is_left_by(self, last: Manifest) -> bool:
        """Whether it has seen batches that a later one has not: training went on from an older checkpoint."""
        return self.counters["batches_seen"] > last.counters["batches_seen"] and self.saved_at < last.saved_at


def read_manifest(path: str | Path, *, expect_kind: str | None = None) -> Manifest:
    """The manifest of the checkpoint directory ``path``, refused when it is not of ``expect_kind``."""
    file = Path(path) / MANIFEST
    if not Path(path).exists():
        raise InputError(
            f"checkpoint not found: '{path}' does not exist; give a checkpoint directory or a run directory"
        )
    if not file.is_file():
        raise InputError(
            f"'{path}' is not a checkpoint: it has no {MANIFEST}; give a directory that a training run wrote"
        )
    manifest = _parse(file)
    if expect_kind is not None and manifest.kind != expect_kind:
        raise InputError(
            f"'{path}' is a checkpoint of kind {manifest.kind} ({KINDS.get(manifest.kind, 'unknown')}), one of kind "
            f"{expect_kind} ({KINDS[expect_kind]}) is wanted here; give the checkpoint of such a run"
        )
    return manifest


def _parse(file: Path) -> Manifest:
    try:
        text = file.read_bytes().decode()
        raw = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"'{file}' is not readable JSON ({error}); the checkpoint is damaged, use another one"
        ) from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise InputError(f"'{file}' has format {found}, this version of latentdiff reads format {FORMAT}")
    if names := {"sha256", *(f.name for f in fields(Manifest))} ^ set(raw):
        raise InputError(
            f"'{file}' has missing or unknown entries: {', '.join(sorted(names))}; the checkpoint is damaged"
        )
    manifest = Manifest(**{name: value for name, value in raw.items() if name != "sha256"})
    if manifest.text != text:
        raise InputError(f"'{file}' is not as it was written (its own sha256 differs); the checkpoint is damaged")
    return manifest
