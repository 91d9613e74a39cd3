"""The ``latentdiff`` command: what serves training and evaluation but is neither."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys

from latentdiff.app import completion
from latentdiff.app.data import cache, shards
from latentdiff.app.doctor import verb as doctor
from latentdiff.app.evaluation import compare, reference
from latentdiff.app.exit_codes import TERMINATED
from latentdiff.app.export import verb as export
from latentdiff.app.page import verb as page
from latentdiff.app.sweep import verb as sweep
from latentdiff.config.errors import InputError, RunError
from latentdiff.config.faults import did_you_mean

PROGRAMS = ("train.py", "evaluate.py", "sample.py")
"""What might be meant by a word that is no verb."""


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0 done, 1 where the system refuses (a full disk), 2 for input that is at
    fault, 130 after Ctrl-C. SIGTERM leaves with 143, and what was half written is removed first."""
    words = sys.argv[1:] if argv is None else argv
    parser = commands()
    if not words:
        parser.print_help(sys.stderr)
        return 2
    _check_verb(parser, words[0])
    arguments = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def commands() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(prog="latentdiff", description="Tools around latentdiff's training.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs")
    shards.add(verbs)
    cache.add(verbs)
    reference.add(verbs)
    compare.add(verbs)
    page.add(verbs)
    export.add(verbs)
    sweep.add(verbs)
    doctor.add(verbs)
    completion.add(verbs)
    _add_import(verbs)
    ema = verbs.add_parser("ema", help="a run's snapshots -> a checkpoint with the average of any length")
    ema.add_argument("run_dir", help="run directory of stage two, trained with snapshots of its averages")
    ema.add_argument("dest", help="new checkpoint directory")
    ema.add_argument(
        "--length", type=float, required=True, metavar="NUMBER", help="standard deviation, as a part of the training"
    )
    ema.set_defaults(run=_ema)
    return parser


def _check_verb(parser: argparse.ArgumentParser, word: str) -> None:
    """Leaves with exit code 2, and the nearest one, where ``word`` is no verb."""
    verbs = [verb for action in parser._actions if isinstance(action.choices, dict) for verb in action.choices]
    if not word.startswith("-") and word not in verbs:
        parser.error(f"there is no verb '{word}'{did_you_mean(word, [*verbs, *PROGRAMS])}; --help lists them")


def _add_import(verbs: argparse._SubParsersAction) -> None:
    add = verbs.add_parser(
        "import",
        help="a whole Stable Diffusion 1 or 2 -> a folder that sample.py and evaluate.py take as their checkpoint",
    )
    add.add_argument("path", help="single file (.safetensors, .ckpt) or folder of a diffusers pipeline")
    add.add_argument("dest", help="new folder")
    add.add_argument("--prediction", choices=("epsilon", "v"), help="what the UNet predicts: single files of SD 2")
    number = {"type": int, "default": None}
    add.add_argument("--size", **number, metavar="PX", help="images' height and width, if the file does not say it")
    add.add_argument("--unet-heads", **number, metavar="N", help="attention heads, if the sizes are not published ones")
    add.add_argument("--text-heads", **number, metavar="N")
    factor = {"type": float, "default": None, "metavar": "NUMBER"}
    add.add_argument("--scale", **factor, help="of the latents: z = (latent - shift) * scale")
    add.add_argument("--shift", **factor)
    add.add_argument("--first-stage", metavar="PATH", help="another program's autoencoder, in place of the file's own")
    add.add_argument(
        "--text-encoder", metavar="PATH", help="folder of a CLIPTextModel and its tokenizer, in place of the file's own"
    )
    add.set_defaults(run=_import)


def _import(arguments: argparse.Namespace) -> None:
    from latentdiff.app.export.import_model import import_model
    from latentdiff.checkpoint.foreign.pipeline.whole import Told

    told = Told(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Told)})
    notes = import_model(arguments.path, arguments.dest, told)
    print(f"model written: {arguments.dest}")
    for note in notes:
        print(f"note: {note}")


def _ema(arguments: argparse.Namespace) -> None:
    from latentdiff.app.post_hoc_ema import reconstruct

    made = reconstruct(arguments.run_dir, arguments.dest, length=arguments.length)
    print(f"checkpoint written: {made.path}")
    print(f"average of length {made.length:g} from {made.snapshots} snapshots, profile off by {made.profile_error:.2%}")
