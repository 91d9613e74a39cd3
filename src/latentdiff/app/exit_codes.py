"""What the exit codes of the programs say, and which one an error stands for."""

from __future__ import annotations

import os
import sys
import traceback

from latentdiff.app.processes import is_first
from latentdiff.config.errors import InputError, RunError
from latentdiff.config.faults import Fault

DONE, FAILED, REFUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes. Those above SIGNALLED are the shell's: SIGNALLED + 2 for Ctrl-C, + 15 for SIGTERM, and so on."""
SIGNALLED = 128


def report(faults: list[Fault]) -> None:
    """One line per fault on stderr; of a distributed run's processes only the first speaks."""
    if is_first():
        for fault in faults:
            print(f"error: {fault}", file=sys.stderr)


def judge(error: BaseException) -> int:
    """The exit code that ``error`` stands for; says what it was, once."""
    if isinstance(error, SystemExit):
        return _exit_code(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, InputError | RunError):
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exception(error)
        report([Fault("", str(error))])
        return REFUSED if isinstance(error, InputError) else FAILED
    traceback.print_exception(error)
    return FAILED


def _exit_code(error: SystemExit) -> int:
    """Lightning leaves with 1 after Ctrl-C and without a code after SIGTERM."""
    if type(error).__name__ == "SIGTERMException":
        return TERMINATED
    if isinstance(error.__context__, KeyboardInterrupt):
        return INTERRUPTED
    if error.code is None:
        return DONE
    if isinstance(error.code, int):
        return error.code
    print(f"error: {error.code}", file=sys.stderr)
    return FAILED
