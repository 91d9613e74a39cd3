"""Starts train.py in forked processes: the imports, most of a short run's time, are done once.

Reads one JSON object per line from stdin, and answers each with one on stdout:
``{"start": [arguments of train.py], "environment": {...}, "output": file}`` -> the process id; the process leads a
process group of its own, and is from then on what ``python train.py`` is. ``{"wait": process id}`` -> its exit code,
minus the signal where one killed it. ``{}`` -> 0, once everything is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pkgutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def serve() -> None:
    import latentdiff

    for module in pkgutil.walk_packages(latentdiff.__path__, "latentdiff."):
        importlib.import_module(module.name)
    for line in sys.stdin:
        wanted = json.loads(line)
        answer = _start(**wanted) if "start" in wanted else _wait(**wanted)
        print(json.dumps(answer), flush=True)


def _wait(wait: int | None = None) -> int:
    return 0 if wait is None else os.waitstatus_to_exitcode(os.waitpid(wait, 0)[1])


def _start(start: list[str], environment: dict[str, str], output: str) -> int:
    process = os.fork()
    if process:
        os.setpgid(process, process)  # done when the answer is read: it can be killed at once
        return process
    code = 1
    try:
        _redirect(output)
        os.environ.update(environment)
        code = _run(start)
    finally:  # the parent's loop is not this process's
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(output: str) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)


def _run(arguments: list[str]) -> int:
    import witness  # beside this file

    from latentdiff.app.launch import run

    witness.install()
    script = REPOSITORY / "train.py"
    sys.argv = [str(script), *arguments]
    spec = importlib.util.spec_from_file_location("train_script", script)
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    return run(train.job, "train")


if __name__ == "__main__":
    serve()
