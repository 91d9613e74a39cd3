"""What a W&B that cannot be reached costs a training: ``logger=wandb`` with a server that refuses connections or never
answers, beside the same run with ``logger=csv``.

    python benchmarks/tracking.py WORK_DIR [--batches 1600] [--rounds 3] [--server closed|silent]

Both programs of a pair run at the same time, each on one thread, so that whatever else the machine does falls on both
alike; a pair of two without W&B is the null control. Prints a Markdown row: wall time of the one program over that of
the other, from start to exit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from interleave import Spread, verdict
from programs import records, run

STAGE_ONE = (
    "experiment=ae_kl",
    "debug=tiny_autoencoder",
    "trainer=cpu",
    "global_batch=8",
    "data.size=32",
    "callbacks.log.every=10",
)
GOAL = 1.05


def seconds(run_dir: Path, batches: int, logger: str) -> float:
    shutil.rmtree(run_dir, ignore_errors=True)
    paths = (f"paths.data={run_dir.parent / 'data'}", f"paths.outputs={run_dir.parent / 'outputs'}")
    length = (f"max_batches={batches}", f"validate_every={max(1, batches // 2)}")
    began = time.perf_counter()
    run("train.py", *STAGE_ONE, *length, *paths, f"logger={logger}", f"run_dir={run_dir}")
    return time.perf_counter() - began


def pair(work: Path, batches: int, loggers: tuple[str, str]) -> tuple[float, float]:
    with ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(seconds, work / f"{i}-{name}", batches, name) for i, name in enumerate(loggers)]
        one, other = (each.result() for each in begun)
    if len({len(records(work / f"{i}-{name}")) for i, name in enumerate(loggers)}) > 1:
        sys.exit("the two runs did not log the same lines")
    return one, other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--batches", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", choices=("closed", "silent"), default="silent")
    given = parser.parse_args()
    listening = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    os.environ |= {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": address, "OMP_NUM_THREADS": "1"}
    if given.server == "closed":
        listening.close()
    seconds(given.work / "data-made", 1, "csv")
    both, null = [], []
    for _ in range(given.rounds):
        both.append(pair(given.work, given.batches, ("wandb", "csv")))
        null.append(pair(given.work, given.batches, ("csv", "csv")))
    ratio, control = (Spread.of([one / other for one, other in pairs]) for pairs in (both, null))
    without = Spread.of([other for _, other in both])
    print("| | seconds without W&B | with / without | without / without | goal |\n|---|---|---|---|---|")
    goal = verdict(ratio.median, at_most=GOAL)
    print(f"| W&B {given.server}, {given.batches} batches | {without} | {ratio} | {control} | {goal} |")


if __name__ == "__main__":
    main()
