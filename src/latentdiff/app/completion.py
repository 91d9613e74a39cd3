"""``latentdiff completion``: what makes a shell complete the verbs and options of the command."""

from __future__ import annotations

import argparse

from latentdiff.config.errors import InputError

SHELLS = ("bash", "zsh", "tcsh")


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds ``completion``."""
    completion = verbs.add_parser(
        "completion",
        help="a script by which the shell completes this command",
        description='In ~/.bashrc: eval "$(latentdiff completion bash)". train.py, evaluate.py and sample.py have '
        "their own, see docs/configs.md.",
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from latentdiff.app.cli import commands
    from latentdiff.app.told import show

    show(script(commands(), arguments.shell))


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Raises InputError where shtab, which writes it, is not installed."""
    try:
        import shtab
    except ImportError as error:
        raise InputError(f"completion: this needs shtab ({error}): pip install 'latentdiff[completion]'") from error
    _complete_files(parser, shtab.FILE)
    return shtab.complete(parser, shell)


def _complete_files(parser: argparse.ArgumentParser, file: dict[str, str]) -> None:
    """Free arguments are names of files, by and large."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                _complete_files(verb, file)
        elif action.choices is None and action.type is None and action.nargs != 0:
            action.complete = file  # type: ignore[attr-defined]
