"""``latentdiff export``: a model for other programs, or for other machines."""

from __future__ import annotations

import argparse

from latentdiff.config.errors import InputError

FORMATS = ("diffusers", "ldm", "latentdiff")


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds ``export``."""
    export = verbs.add_parser(
        "export",
        help="a model -> a folder for diffusers or for another machine, a file of LDM's; with the averaged weights",
        description="Writes the averaged weights of a checkpoint. diffusers: a folder with a pipeline, or a first "
        "stage; ldm: a .safetensors file; latentdiff: a folder with both stages that sample.py, evaluate.py and "
        "first_stage.checkpoint take, without training state. Folders get a model card.",
    )
    export.add_argument("checkpoint", help="checkpoint or run directory, or another program's autoencoder")
    export.add_argument("dest", help="new folder, or new .safetensors file (ldm)")
    export.add_argument("--format", required=True, choices=FORMATS, help="of what is written")
    export.add_argument("--first-stage", metavar="PATH", help="of a second stage: where its first stage is now")
    export.add_argument("--unet-only", action="store_true", help="diffusers, ldm: of a second stage its UNet alone")
    export.add_argument(
        "--single-file", action="store_true", help="ldm: as within Stable Diffusion's files, whole with CLIP"
    )
    export.add_argument(
        "--with-text-encoder",
        action="store_true",
        help="latentdiff: put in a frozen text encoder with a public name too, which would be downloaded; those from "
        "files of this machine are put in always",
    )
    factor = {"type": float, "default": None, "metavar": "NUMBER"}
    export.add_argument("--scale", **factor, help="of another program's latents: z = (latent - shift) * scale")
    export.add_argument("--shift", **factor)
    card = export.add_argument_group("model card (README.md in every folder)")
    card.add_argument("--license", metavar="ID", help="as hubs call it, e.g. apache-2.0")
    card.add_argument(
        "--results", metavar="PATH", help="results.json of evaluate.py; else the newest of these weights beside the run"
    )
    hub = export.add_argument_group("upload (extra hub)")
    hub.add_argument("--push", metavar="REPO", help="repository of the Hugging Face hub, owner/name")
    hub.add_argument(
        "--private", action="store_true", help="a private one: it is made so; one that is public is refused"
    )
    export.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.push is None and arguments.private:
        raise InputError("--private is for --push REPO")
    if arguments.push is not None:
        _check_push(arguments)
    from latentdiff.app.export.foreign import Options
    from latentdiff.app.export.model_facts import Told
    from latentdiff.app.export.work import export

    names = ("single_file", "unet_only", "scale", "shift", "first_stage", "with_text_encoder")
    exported = export(
        arguments.checkpoint,
        arguments.dest,
        form=arguments.format,
        options=Options(**{name: getattr(arguments, name) for name in names}),
        told=Told(license=arguments.license, results=arguments.results),
    )
    print(f"{exported.what} written: {arguments.dest}")
    for note in exported.notes:
        print(f"note: {note}")
    if arguments.push is not None:
        from pathlib import Path

        from latentdiff.app.export.hub_push import push

        print(f"uploaded: {push(Path(arguments.dest), arguments.push, private=arguments.private)}")


def _check_push(arguments: argparse.Namespace) -> None:
    from latentdiff.app.export.hub_push import check_hub

    if arguments.format == "ldm":
        raise InputError("--push uploads folders with their model card: --format diffusers or latentdiff")
    check_hub(arguments.push)
