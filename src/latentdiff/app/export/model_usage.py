"""How a model that was exported is used: lines for its card."""

from __future__ import annotations

from latentdiff.app.export.foreign import Format
from latentdiff.app.export.model_facts import Facts

_GIVEN = {"mask": "image=PATH mask=PATH", "low_res": "image=PATH", "segmentation": "map=PATH"}
"""What sample.py is given for a field of the batch."""


def usage(facts: Facts, what: str, form: Format, kind: str | None) -> str:
    """``kind``: the class of diffusers that is in the folder by itself."""
    if form == "latentdiff":
        return f"With latentdiff, FOLDER being this folder:\n\n{_own(facts)}"
    if what == "pipeline":
        return _code(_pipeline(facts))
    return _code([f"from diffusers import {kind}", "", f'model = {kind}.from_pretrained("FOLDER")'])


def _own(facts: Facts) -> str:
    if facts.manifest.kind == "classifier":
        return _code(["python sample.py checkpoint=MODEL guidance=classifier guidance.checkpoint=FOLDER label=0"], "")
    evaluate = "python evaluate.py checkpoint=FOLDER"
    if facts.select("data.module") is None:
        evaluate += " data=webdataset data.train=PATH data.size=512"
    train = "python train.py experiment=ldm_txt2img first_stage.checkpoint=FOLDER"
    sample = f"python sample.py checkpoint=FOLDER {_request(facts)}".rstrip()
    return _code([*([sample] if facts.manifest.kind == "diffusion" else []), evaluate, train], "")


def _request(facts: Facts) -> str:
    """What sample.py needs."""
    given = ['prompt="TEXT"'] if facts.select("conditioner.reads_captions") else []
    given += ["label=0"] if facts.select("conditioner.reads_labels") else []
    given += [_GIVEN[name] for name in facts.select("conditioner.conditions") or {} if name in _GIVEN]
    return " ".join(given)


def _pipeline(facts: Facts) -> list[str]:
    settings = {"num_inference_steps": facts.select("sampler.steps")}
    called = ""
    if facts.select("conditioner.reads_captions"):
        settings |= {"guidance_scale": facts.select("guidance.scale")}
        called = '"TEXT", '
    given = ", ".join(f"{name}={value}" for name, value in settings.items() if value is not None)
    return [
        "from diffusers import DiffusionPipeline",
        "",
        'pipeline = DiffusionPipeline.from_pretrained("FOLDER")',
        f"image = pipeline({called}{given}).images[0]",
    ]


def _code(lines: list[str], language: str = "python") -> str:
    return "\n".join([f"```{language}", *lines, "```"])
