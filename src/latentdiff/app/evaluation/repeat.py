"""``evaluate.py card=results.json``: an evaluation repeated from its card alone, and held against it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from latentdiff import durable
from latentdiff.app import schema
from latentdiff.checkpoint import store
from latentdiff.config.errors import InputError, RunError
from latentdiff.config.quoting import quote_overrides
from latentdiff.config.validate import validate
from latentdiff.evaluation.compare import differences, read_results
from latentdiff.evaluation.report import flattened

FILES = ("reference", "prompts")
"""Keys of files whose content the numbers depend on."""
WHOLE = ("trainer", "logger", "data", "paths")
"""Nodes that replace the card's when one of their keys is given beside ``card``."""
MOVED = ("card", "checkpoint", "images", "pipeline", "first_stage.checkpoint", "run_dir", *FILES, *WHOLE)
"""What may be given beside ``card``: where things lie now and what computes. All else is the card's."""
NODES = {
    "trainer": ("accelerator", "devices", "strategy", "precision"),
    "paths": ("outputs",),
    "data": ("module", "size"),
    "first_stage": ("checkpoint",),
    **dict.fromkeys(("sampler", "guidance", "sweep", "metrics", "logger"), ()),
}
"""Nodes of a configuration, with the keys that are read of them whatever they hold."""
OPTIONAL = ("data", "metrics", "logger")
"""Those that may be null."""
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
"""What the protocol calls a precision -> what the trainer does."""
ROUNDING = 1e-5
"""Relative difference that another number of threads, device or version of torch may make; of no other cause."""
SHOWN = 10
"""Numbers that a message lists."""


def config_record(cfg: DictConfig) -> dict[str, object]:
    """For the card: the resolved configuration, the overrides that made it, and the sha256 of the files it names."""
    values = OmegaConf.to_container(cfg, resolve=True)
    named = {key: values.get(key) for key in FILES}
    return {
        "values": {**values, "card": None},
        "overrides": [] if values.get("card") else [_as_typed(override) for override in _overrides()],
        "files": {key: durable.sha256(Path(path)) for key, path in named.items() if path is not None},
    }


def repeated(cfg: DictConfig) -> DictConfig:
    """The configuration in the card of ``cfg.card``, with what ``cfg`` says of ``MOVED``; ``card`` stays named.

    Raises InputError where something else was given too, where the card holds no configuration of this version, and
    where the model or a file is another than the card says.
    """
    card = read_results(cfg.card)["card"]
    _check_card(card, cfg.card)
    _check_place(cfg)
    given = [line.partition("=")[0].lstrip("+~") for line in _overrides()]
    if other := [key for key in given if not any(key == own or key.startswith(f"{own}.") for own in MOVED)]:
        raise InputError(
            f"{other[0]}: the evaluation is repeated as its card says; beside card= only {', '.join(MOVED[1:])} can be "
            "given"
        )
    again, now = _recorded(card, cfg.card), OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    if again.checkpoint is not None:
        again.checkpoint = card["model"]["checkpoint"]  # a run directory may have another last one by now
    again.logger = None  # where its numbers were shown then is no part of it
    for key in given:
        root = key.partition(".")[0]
        own = root if root in WHOLE else key
        OmegaConf.update(again, own, OmegaConf.select(now, own), merge=False)
    precision = card["protocol"].get("generation", {}).get("precision")
    if precision in PRECISIONS and "trainer.precision" not in given:
        again.trainer.precision = PRECISIONS[precision]  # another device would choose another
    again.run_dir, again.card = cfg.run_dir, cfg.card
    _check_model(card["model"], again)
    _check_files(card["config"].get("files", {}), again)
    return again


def check_protocol(card: str | Path, protocol: Mapping[str, object]) -> None:
    """Raises InputError where an evaluation, before its first image, is not what the card of ``card`` says."""
    said = {key: value for key, value in read_results(card)["card"]["protocol"].items() if key != "reference"}
    now = json.loads(json.dumps(protocol))
    if found := differences([{"protocol": said}, {"protocol": now}]):
        listed = "\n".join(f"  {each}" for each in found)
        raise InputError(f"this is not the evaluation that '{card}' tells of (there | here):\n{listed}")


def check_identity(card: str | Path, identity: Mapping[str, object]) -> None:
    """Raises InputError for a pipeline or images that are, without a look into these, not those of the card."""
    said = read_results(card)["card"]["model"]
    for what, mark in (("pipeline", "sha256"), ("images", "listing")):
        if what in identity and said.get(mark) != identity[mark]:
            raise InputError(
                f"{what}: the files in '{identity[what]}' are not those of '{card}', which lay in '{said.get(what)}'; "
                f"name their present place with {what}=PATH"
            )


def verdict(card: str | Path, results: str | Path) -> str:
    """That the numbers of two results.json are the same, to the last bit or but for ``ROUNDING``. Raises RunError with
    those that are not."""
    before, now = read_results(card), read_results(results)
    numbers = [dict(flattened(each["results"])) for each in (before, now)]
    names = dict.fromkeys([*numbers[0], *numbers[1]])
    changed = [name for name in names if numbers[0].get(name) != numbers[1].get(name)]
    if not changed:
        return f"repeated: all {len(names)} numbers are those of {card}"
    lines = [f"  {name}: {numbers[0].get(name)} | {numbers[1].get(name)}" for name in changed[:SHOWN]]
    lines += [f"  and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
    cards = [before["card"], now["card"]]
    causes = [each for part in ("protocol", "observed", "environment") for each in differences(cards, part)]
    lines += ["what else differs:", *(f"  {each}" for each in causes)] if causes else []
    if all(_rounded(numbers[0].get(name), numbers[1].get(name)) for name in changed):
        rest = len(names) - len(changed)
        return f"repeated: {rest} numbers are those of {card}, {len(changed)} but for rounding:\n" + "\n".join(lines)
    raise RunError(
        f"{len(changed)} of {len(names)} numbers are not those of '{card}' (there | here):\n" + "\n".join(lines)
    )


def _rounded(one: object, other: object) -> bool:
    floats = isinstance(one, float) and isinstance(other, float)
    return floats and math.isclose(one, other, rel_tol=ROUNDING)


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _as_typed(override: str) -> str:
    """Without the quotes that ``launch`` puts around paths and texts, and would put there again."""
    key, _, value = override.partition("=")
    bare = f"{key}=" + value[1:-1].replace("\\'", "'")
    return bare if quote_overrides([bare]) == [override] else override


def _recorded(card: Mapping, path: str) -> DictConfig:
    """The configuration in a card, which may be a stranger's: checked as one on the command line is."""
    values = card["config"]["values"]
    if "${" in json.dumps(values):
        raise InputError(f"card: the configuration in '{path}' holds interpolations; a card has plain values")
    root = schema.ROOTS["evaluate"]
    try:
        again = OmegaConf.merge(OmegaConf.structured(root.schema), values)
    except OmegaConfBaseException as error:
        raise InputError(
            f"card: '{path}' holds a configuration of another version: {str(error).splitlines()[0]}"
        ) from error
    for key, read in NODES.items():
        node = again[key]
        if node is None and key in OPTIONAL:
            continue
        if not isinstance(node, DictConfig) or any(name not in node for name in read):
            raise InputError(f"card: '{path}' has no {key} as evaluate.py writes it; it cannot be repeated")
    if faults := validate(again, injected=root.injected, runtime=root.runtime):
        raise InputError("\n".join(f"card: '{path}': {fault}" for fault in faults))
    return again


def _check_card(card: Mapping, path: str) -> None:
    """Raises InputError where parts that are read here have another form than ``config_record`` and the card have."""
    config, model, generation = card["config"], card["model"], card["protocol"].get("generation", {})
    values, files = config.get("values"), config.get("files", {})
    if not isinstance(values, Mapping):
        raise InputError(f"card: '{path}' holds no configuration; it cannot be repeated")
    texts = isinstance(files, Mapping) and all(isinstance(value, str) for value in files.values())
    sound = {
        "config.files": texts and set(files) <= set(FILES),
        "model.checkpoint": values.get("checkpoint") is None or isinstance(model.get("checkpoint"), str),
        "model.first_stage": isinstance(model.get("first_stage", {}), Mapping),
        "protocol.generation": isinstance(generation, Mapping) and isinstance(generation.get("precision", ""), str),
    }
    if damaged := [part for part, is_sound in sound.items() if not is_sound]:
        raise InputError(f"card: '{path}' has no {damaged[0]} as evaluate.py writes it; it cannot be repeated")


def _check_place(cfg: DictConfig) -> None:
    """Raises InputError where the repetition would take the place of what it is held against."""
    card = Path(cfg.card)
    if cfg.run_dir is not None and (card if card.is_dir() else card.parent).resolve() == Path(cfg.run_dir).resolve():
        raise InputError(f"run_dir: '{cfg.run_dir}' holds the evaluation that is repeated; give another")


def _check_model(said: Mapping, cfg: DictConfig) -> None:
    if cfg.checkpoint is None:
        return
    path = store.resolve(cfg.checkpoint, prefer=("last", "best"))
    manifest = store.read_manifest(path)
    stages = [("model", said.get("digest"), manifest.digest)]
    if manifest.first_stage is not None:
        stages.append(("first stage", said.get("first_stage", {}).get("hash"), manifest.first_stage["hash"]))
    for what, expected, got in stages:
        if expected != got:
            raise InputError(
                f"card: its numbers are those of the {what} {str(expected)[:12]}, '{path}' has {got[:12]}; name the "
                "right one with checkpoint=PATH"
            )


def _check_files(said: Mapping[str, str], cfg: DictConfig) -> None:
    for key in FILES:
        if (expected := said.get(key)) is None and cfg[key] is None:
            continue
        if expected is None or cfg[key] is None:
            raise InputError(f"{key}: the card names {'none' if expected is None else 'one'}; repeat it as it was")
        path = Path(cfg[key])
        if not path.is_file():
            raise InputError(f"{key}: there is no file '{path}'; name its present place with {key}=PATH")
        if (got := durable.sha256(path)) != expected:
            raise InputError(f"{key}: '{path}' has the sha256 {got[:12]}, the card says {expected[:12]}; give that one")
