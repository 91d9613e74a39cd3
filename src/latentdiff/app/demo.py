"""make demo: both stages on the embedded data, their evaluation, a few prompts, and a summary of it all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from latentdiff.app.evaluation.kept import remove_complete
from latentdiff.checkpoint import store
from latentdiff.evaluation.report import results_table

HOME = Path("outputs/demo")
EVALUATION = HOME / "evaluate"
METRICS = ("metrics=[shapes_text,small]", "~metrics.frechet")
"""Captions read off the images, and every number of a network that needs no download."""
PROMPTS = (
    "a big red circle to the left of a small blue box on a white background",
    "a small yellow star in the top right corner on a navy background",
    "a large green star in the middle, gray background",
    "a huge orange ring above a little cyan cross, against black",
)


def main() -> None:
    """Runs the programs as a user would; each goes on where an interrupted demo stopped."""
    console, memory = Console(), PeakMemory()
    ldm = HOME / "ldm"
    began = time.perf_counter()
    run("train.py", "experiment=ldm_txt2img", f"run_dir={ldm}")
    last = ldm / "checkpoints" / "last"
    first = Path(store.read_manifest(last).first_stage["path"])
    for folder in (HOME / "evaluate_autoencoder", EVALUATION):
        remove_complete(folder)
    run("evaluate.py", f"checkpoint={first}", f"run_dir={HOME / 'evaluate_autoencoder'}")
    run("evaluate.py", f"checkpoint={last}", "controls=false", *METRICS, f"run_dir={EVALUATION}")
    run("sample.py", f"checkpoint={last}", f"prompt={json.dumps(list(PROMPTS))}", f"run_dir={HOME / 'samples'}")
    summary = summarise(first, last, memory.peak_gib())
    summary["total_seconds"] = round(time.perf_counter() - began, 1)
    (HOME / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    show(console, summary)


def run(script: str, *overrides: str) -> None:
    """One of the root scripts in a process of its own; its failure is the demo's."""
    print(f"\n$ python {script} {' '.join(overrides)}", flush=True)
    code = subprocess.run([sys.executable, script, *overrides], check=False).returncode
    if code:
        sys.exit(code)


def summarise(first: Path, last: Path, peak_gib: float) -> dict:
    """The demo's results from the files that the programs wrote."""
    stage_one = json.loads((HOME / "evaluate_autoencoder" / "results.json").read_text())["results"]
    results = EVALUATION / "results.json"
    measured = json.loads(results.read_text())["results"]
    return {
        "stage_one": {
            "psnr": stage_one["reconstruction"]["psnr"],
            "seconds": store.read_manifest(first).extra["seconds"],
        },
        "stage_two": {"seconds": store.read_manifest(last).extra["seconds"]},
        "caption_accuracy": measured["captions"],
        "distances": measured["small"],
        "peak_memory_gib": round(peak_gib, 2),
        "checkpoints": {"autoencoder": str(first), "ldm": str(last)},
        "grids": [str(path) for path in sorted(HOME.rglob("*.png")) if path.name.startswith(("grid", "batch"))],
        "results": str(results),
        "report": str(EVALUATION / "report.html"),
    }


def show(console: Console, summary: dict) -> None:
    accuracy = summary["caption_accuracy"]
    table = Table("scenes", *accuracy["one_object"], title="caption accuracy")
    groups = [(name, accuracy[name]) for name in ("one_object", "two_objects")]
    for control in ("shuffled", "reconstructions"):
        groups += [(f"{control}: {name}", row) for name, row in accuracy[control].items()]
    for name, row in groups:
        table.add_row(name, *(f"{value:.3f}" for value in row.values()))
    console.print(table)
    console.print(results_table(summary["distances"], title="500 images beside 500 held-back ones; none is a FID"))
    console.print(
        f"stage one: {summary['stage_one']['psnr']:.2f} dB in {summary['stage_one']['seconds']:.0f} s of training"
    )
    console.print(f"stage two: {summary['stage_two']['seconds']:.0f} s of training")
    console.print(f"in all {summary['total_seconds']:.0f} s, peak memory {summary['peak_memory_gib']} GiB")
    console.print(
        f"report: {summary['report']}; images: {EVALUATION / 'grid.png'}, {HOME / 'samples' / 'grid.png'}; "
        f"summary: {HOME / 'summary.json'}",
        soft_wrap=True,
    )
    console.print(
        "\nTry next:\n"
        f'  python sample.py checkpoint={HOME / "ldm"} prompt="a tiny pink star below a big purple box"\n'
        f"  python evaluate.py checkpoint={HOME / 'ldm'} guidance.scale=1.5 sampler=dpmpp_2m\n"
        "  latentdiff shards make MY_PHOTOS data/mine && python train.py experiment=ldm_txt2img data=webdataset "
        "data.train=data/mine",
        soft_wrap=True,
        markup=False,
    )


class PeakMemory:
    """Largest resident memory of this process and all its descendants together, looked at twice a second (Linux)."""

    def __init__(self) -> None:
        self._peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def peak_gib(self) -> float:
        return self._peak / 2**30

    def _watch(self) -> None:
        while Path("/proc/self/statm").exists():
            self._peak = max(self._peak, _resident_of_tree(os.getpid()))
            time.sleep(0.5)


def _resident_of_tree(root: int) -> int:
    """Bytes of private plus shared pages; pages that processes share are counted once per process."""
    parents, resident = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            resident[int(folder.name)] = int((folder / "statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue  # it ended while we looked
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(resident.get(pid, 0) for pid in family) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
