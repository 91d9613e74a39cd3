"""The work of sample.py: batches of images to files, each written as soon as it is made; how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from latentdiff.app.ranks import Ranks
from latentdiff.app.sampling.grid import save_trajectories, trajectories
from latentdiff.app.sampling.images import Wanted, about, frame_images, make_images, save_image
from latentdiff.app.sampling.request import Request
from latentdiff.config.errors import RunError
from latentdiff.diffusion.trajectory import Trajectory
from latentdiff.generation.pipeline import LatentPipeline
from latentdiff.generation.repaint import Repaint

MOST_FRAMES = 50
"""Of a trajectory; of a sampling in more steps, as many at even distances."""


@dataclass(frozen=True)
class Work:
    """Images to make, and where their files belong."""

    pipeline: LatentPipeline
    request: Request
    wanted: list[Wanted]
    record: Mapping[str, object]
    """See ``sample_record``; its ``images`` are those of ``wanted``."""
    where: Path

    def do(self, batch_size: int, ranks: Ranks) -> None:
        """This process's batches, one after the other; those whose files stand are passed over.

        Every n-th batch is one of n processes', so that each image is made among the same others on any number of
        them. Raises RunError where the disk refuses a file.
        """
        starts = range(0, len(self.wanted), batch_size)[ranks.rank :: ranks.count]
        own = [range(start, min(start + batch_size, len(self.wanted))) for start in starts]
        total = self.pipeline.count_steps(self.request.strength, self._repaint)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console()
        quiet = not (ranks.first and console.is_terminal)
        with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
            share = "" if ranks.count == 1 else f" of process 1 of {ranks.count}"
            images, steps = bar.add_task(f"images{share}", total=sum(map(len, own))), bar.add_task("steps", total=total)
            for numbers in own:
                ranks.check()
                if self._lacks(numbers):
                    bar.reset(steps)
                    self._make(numbers, total, lambda: bar.advance(steps))
                bar.advance(images, len(numbers))

    @property
    def _repaint(self) -> Repaint | None:
        return self.request.repaint_for(self.wanted[0].reads)

    def _file(self, number: int) -> Path:
        return self.where / self.record["images"][number]["file"]

    def _lacks(self, numbers: range) -> bool:
        """Whether a file of this batch is missing."""
        part = [self.wanted[i] for i in numbers]
        moving = trajectories(part, numbers[0]) if self.request.trajectory else ()
        return not all(path.exists() for path in (*map(self._file, numbers), *(self.where / name for name in moving)))

    def _make(self, numbers: range, steps: int, advance: Callable[[], None]) -> None:
        """One batch. An image that was made among others before is made among as many of itself, in its old place."""
        part = [self.wanted[i] for i in numbers]
        place, count = self.record["images"][numbers[0]]["batch"]
        among = part * count if len(part) == 1 else part
        recorder = Trajectory.evenly(steps, MOST_FRAMES) if self.request.trajectory else None

        def on_step(step: int, t_next: Tensor, x: Tensor, x0_hat: Tensor) -> None:
            advance()
            if recorder is not None:
                recorder(step, t_next, x, x0_hat)

        made = make_images(self.pipeline, among, self.request, self._repaint, on_step)[place : place + len(part)]
        try:
            if recorder is not None:
                frames = recorder.frames[:, place : place + len(part)]
                images = frame_images(self.pipeline, frames, part, self.request)
                save_trajectories(self.where, images, part, first=numbers[0])
            for i, image in zip(numbers, made, strict=True):
                if not self._file(i).exists():
                    self._save(i, image)
        except OSError as error:
            raise RunError(
                f"'{error.filename or self.where}' cannot be written ({error.strerror or error}); the images that "
                "stand stay, the same command with this run_dir makes the others"
            ) from error

    def _save(self, number: int, image: Tensor) -> None:
        record = {**self.record, "images": [self.record["images"][number]]}
        save_image(self._file(number), image, about(self.wanted[number], self.request, record))
