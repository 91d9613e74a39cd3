"""The program in which W&B runs, beside the training that ``WandbLogger`` reports: what W&B does cannot hold it up.

Reads JSON lines on standard input: the first begins the run, each of the others is a call of ``Recorder``; after the
call ``end``, or at the end of the input, the run is finished. Prints lines for people, those that begin with
"warning: " are warnings.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from latentdiff.training.wandb_pipe import SAID


def work(say: Callable[[str], None], leave: Callable[[int], None]) -> None:
    """``leave``: ends the program, with an exit code."""
    from latentdiff.training.wandb_recorder import begin, recorder

    messages = (json.loads(line) for line in sys.stdin.buffer)
    first = next(messages)
    timeouts, run_dir = first["timeouts"], Path(first["settings"]["dir"])
    os.environ.setdefault("WANDB_DATA_DIR", str(run_dir / "wandb" / "data"))  # what `wandb sync` needs, beside the run
    run = begin(first["settings"], first["offline"], timeouts, say)
    found, told = recorder(run, run_dir, first["batches_seen"]), set()
    for message in messages:
        call = message.pop("call")
        try:
            getattr(found, call)(**message)
        except Exception as error:  # whatever W&B may raise: the training's own record stands
            if call not in told:
                say(f"warning: W&B did not take a {call} ({type(error).__name__}: {error}); said once")
            told.add(call)
        if call == "end":
            break  # processes that the training has forked may hold the input open
    ending = threading.Timer(timeouts["finish"], _give_up, (say, leave, run.settings.sync_dir))
    ending.start()
    run.finish(exit_code=found.exit_code)
    ending.cancel()


def _give_up(say: Callable[[str], None], leave: Callable[[int], None], place: str) -> None:
    say(f"warning: W&B has not taken all in time; send the rest with: wandb sync --include-online {place}")
    leave(SAID)


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what W&B prints
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the training says when it ends
    own = contextlib.ExitStack()

    def say(line: str) -> None:
        print(" ".join(line.split()), file=out)

    def leave(code: int) -> None:
        own.close()
        os._exit(code)  # nothing that W&B leaves behind is waited for

    try:
        folder = tempfile.TemporaryDirectory(prefix="wandb-", ignore_cleanup_errors=True)
        tempfile.tempdir = own.enter_context(folder)  # W&B's own temporary folders are removed at an orderly exit only
        work(say, leave)
    except Exception as error:
        say(f"warning: W&B failed ({type(error).__name__}: {error}); metrics.jsonl has all values")
        leave(SAID)
    leave(0)


if __name__ == "__main__":
    main()
