"""The arguments of train.py, evaluate.py and sample.py, read as Hydra will read them."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from latentdiff.config.errors import InputError
from latentdiff.config.quoting import quote_overrides


def read_argv() -> Namespace:
    """Quotes the free texts and paths in ``sys.argv``, and puts options first, as Hydra wants them.

    Raises InputError for an option that is none.
    """
    parser = get_args_parser()
    parser.allow_abbrev = False  # --experiment would be read as --experimental-rerun
    parser.error = _refuse  # type: ignore[method-assign]
    args, unknown = parser.parse_known_intermixed_args()
    if unknown:
        raise InputError(_no_option(unknown[0]))
    quoted = quote_overrides(args.overrides, multirun=is_multirun(args))
    options, pending = [], list(args.overrides)
    for argument in sys.argv[1:]:
        if pending and argument == pending[0]:
            pending.pop(0)
        else:
            options.append(argument)
    sys.argv = [sys.argv[0], *options, *quoted]
    args.overrides = quoted
    return args


def is_multirun(args: Namespace) -> bool:
    return args.multirun or any(line.replace("+", "") == "hydra.mode=MULTIRUN" for line in args.overrides)


def asks(args: Namespace) -> bool:
    """For information, which is Hydra's own."""
    return bool(args.hydra_help or args.info or args.shell_completion or args.experimental_rerun)


def _refuse(message: str) -> NoReturn:
    raise InputError(f"{message}; see --help")


def _no_option(argument: str) -> str:
    name, equals, value = argument.partition("=")
    setting = f"{name.lstrip('-')}={value if equals else 'VALUE'}"
    return f"there is no option {name}; settings are written without dashes, {setting}, and --help lists the options"
