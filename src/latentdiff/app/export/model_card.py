"""The model card of an exported folder: ``README.md``, as model hubs show it. What is not known is left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import yaml

from latentdiff.app.export.foreign import Format
from latentdiff.app.export.model_facts import PICTURE, Facts
from latentdiff.app.export.model_usage import usage
from latentdiff.checkpoint.foreign.diffusers_config import CONFIG
from latentdiff.checkpoint.manifest import EXPORTED
from latentdiff.evaluation.report import flattened, shown

CARD = "README.md"
READ = {
    "mask": "images with a hole",
    "low_res": "small images",
    "segmentation": "maps of classes",
    "size": "sizes",
}
"""What a field of the batch is called, in which a model is given its condition."""

Rows = Iterable[tuple[str, object]]


def write_card(facts: Facts, folder: Path, *, what: str, form: Format, notes: list[str]) -> None:
    """Adds the card, and the picture where there is one, to a ``folder`` that holds ``what`` in the format ``form``.

    ``notes``: what the export said of its files.
    """
    if facts.picture is not None:
        shutil.copyfile(facts.picture, folder / PICTURE)
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(facts, what, form), sort_keys=False)}---",
        f"# {_title(facts)}",
        _about(facts, what),
        "" if facts.picture is None else f"![images]({PICTURE})",
        _section("Use", usage(facts, what, form, _class_in(folder))),
        _section("Model", _table(("part", "parameters"), _sizes(facts)), _table(("", ""), _model(facts))),
        _section("Training", _table(("", ""), _training(facts))),
        _section("Evaluation", *_evaluation(facts)),
        _section("Limits", "\n".join(f"- {limit}" for limit in [*_limits(facts), *map(_sentence, notes)])),
    ]
    (folder / CARD).write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def _front_matter(facts: Facts, what: str, form: Format) -> dict[str, object]:
    tags = ["latent-diffusion", "latentdiff"]
    found: dict[str, object] = {} if facts.license is None else {"license": facts.license}
    found["library_name"] = form
    if facts.manifest.kind == "diffusion" and what != "UNet" and (task := _task(facts)) is not None:
        found["pipeline_tag"] = task
    train = facts.select("data.train")
    if isinstance(train, str) and train.startswith("hf://datasets/"):
        found["datasets"] = ["/".join(train.split("/")[3:5])]
    return found | {"tags": tags}


def _task(facts: Facts) -> str | None:
    """In the hub's words; None for what it has none for."""
    if facts.select("conditioner.conditions"):
        return "image-to-image"
    if facts.select("conditioner.reads_captions"):
        return "text-to-image"
    return None if facts.select("conditioner.reads_labels") else "unconditional-image-generation"


def _title(facts: Facts) -> str:
    size = facts.select("data.size")
    name = facts.select("experiment") or facts.manifest.kind
    return f"{name}, {size} px" if size else name


def _about(facts: Facts, what: str) -> str:
    kinds = {
        "autoencoder": "The first stage of a latent diffusion model: an autoencoder, images to latents and back",
        "classifier": "A classifier of noisy latents, for classifier guidance",
        "diffusion": f"A latent diffusion model that makes images {_condition(facts)}",
    }
    part = "The UNet, without its first stage and its conditioner, of this: " if what == "UNet" else ""
    trained = "" if "imported_from" in facts.manifest.extra else ", trained with latentdiff"
    return f"{part}{kinds[facts.manifest.kind]}{trained}. The weights are averages over training (EMA)."


def _condition(facts: Facts) -> str:
    read = ["captions"] if facts.select("conditioner.reads_captions") else []
    read += ["classes"] if facts.select("conditioner.reads_labels") else []
    read += [READ.get(name, name) for name in facts.select("conditioner.conditions") or {}]
    return f"from {' and '.join(read)}" if read else "without a condition"


def _sizes(facts: Facts) -> Rows:
    return [(part, f"{count:,}") for part, count in facts.parameters.items()]


def _model(facts: Facts) -> Iterator[tuple[str, object]]:
    latent, size = facts.manifest.latent, facts.select("data.size")
    yield "images", f"{size} x {size}" if size else None
    yield "latents", f"{latent['channels']} channels at 1/{latent['factor']} of the side" if latent else None
    yield "backbone", facts.name("backbone")
    yield "conditioner", facts.name("conditioner.module") if facts.manifest.kind == "diffusion" else None
    yield "bottleneck", facts.name("autoencoder.bottleneck")
    yield "path", facts.name("diffusion.path")
    yield "prediction", facts.name("diffusion.parameterization")
    yield "identity of the weights", f"`{facts.manifest.digest}`"


def _training(facts: Facts) -> Iterator[tuple[str, object]]:
    manifest = facts.manifest
    counters, origin = manifest.counters, manifest.extra.get(EXPORTED, {})
    yield "data", _data(facts)
    yield "fingerprint of the training samples", f"`{manifest.data['fingerprint']}`" if manifest.data else None
    yield "batches", counters["batches_seen"] or None
    yield "images seen", counters["images_seen"] or None
    yield "global batch", facts.select("global_batch")
    yield "optimiser", facts.name("optim.optimizer")
    yield "learning rate", facts.select("optim.lr")
    yield "decay of the average", facts.select("task.ema_decay")
    yield "times", facts.name("diffusion.timesteps")
    yield "weighting", facts.name("diffusion.weighting")
    yield "reconstruction loss", facts.name("task.reconstruction")
    yield "adversarial loss", facts.name("task.adversarial_loss")
    yield "precision", facts.select("trainer.precision")
    yield "seed", facts.select("seed")
    yield "commit of latentdiff", f"`{facts.revision}`" if facts.revision else None
    yield "imported from", manifest.extra.get("imported_from")
    if "imported_from" not in manifest.extra:
        versions = origin.get("versions", manifest.versions)
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or None


def _data(facts: Facts) -> str | None:
    named, source = facts.select("data.train"), facts.select("data.module.source")
    if named is not None:
        return ", ".join(named) if isinstance(named, list) else str(named)
    if source is None:
        return None
    counts = [f"{name}: {source[name]}" for name in ("train_samples", "val_samples") if name in source]
    told = f" ({', '.join(counts)})" if counts else ""
    return f"{facts.name('data.module.source')}{told}"


def _evaluation(facts: Facts) -> list[str]:
    if facts.evaluation is None:
        return []
    card, protocol = facts.evaluation["card"], facts.evaluation["card"]["protocol"]
    numbers = [
        (name, shown(value)) for name, value in flattened(facts.evaluation["results"]) if not isinstance(value, list)
    ]
    generation, samples = protocol.get("generation", {}), protocol.get("samples", {})
    said = {
        "images": samples.get("count"),
        "resolution": " x ".join(map(str, samples.get("resolution", []))) or None,
        "conditions": _said(protocol.get("conditions", {}).get("dataset")),
        **{name: _said(generation.get(name)) for name in ("sampler", "steps", "guidance", "precision")},
        "first seed": protocol.get("seeds", {}).get("first"),
        "reference": "; ".join(_reference(*each) for each in protocol.get("reference", {}).items()) or None,
        "latentdiff": _said(card["environment"]),
    }
    return [_table(("metric", "value"), numbers), "Under this protocol:", _table(("", ""), said.items())]


def _limits(facts: Facts) -> list[str]:
    found = []
    if facts.evaluation is None:
        found.append("No evaluation of these weights came with the export: nothing is said of their quality.")
    if facts.manifest.counters["images_seen"]:
        found.append("It has learnt from its training data alone, with what is wrong or missing in them.")
    if facts.select("data.size") and facts.manifest.kind != "classifier":
        found.append(f"It was trained at {facts.select('data.size')} pixels a side; other sizes are untried.")
    return found


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."


def _reference(name: str, told: Mapping) -> str:
    return f"{name}: {told.get('count')} images, {told.get('from')}"


def _said(value: object) -> str | None:
    """A value or a small mapping on one line, without hashes."""
    if not isinstance(value, Mapping):
        return None if value is None else str(value)
    told = [f"{key}: {child}" for key, child in value.items() if child is not None and key not in ("samples", "times")]
    return ", ".join(told) or None


def _section(title: str, *blocks: str) -> str:
    text = "\n\n".join(filter(None, blocks))
    return f"## {title}\n\n{text}" if text else ""


def _table(head: tuple[str, str], rows: Rows) -> str:
    lines = [f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows if value is not None]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *lines]) if lines else ""


def _class_in(folder: Path) -> str | None:
    """Of diffusers, that is in the folder by itself."""
    file = folder / CONFIG
    return json.loads(file.read_text(encoding="utf-8"))["_class_name"] if file.is_file() else None
