"""The demo page's side of results (gradio): images, how it stands, files, the command; and the two buttons."""

from __future__ import annotations

import html
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentdiff.app.page.progress import Progress, StoppedError
from latentdiff.app.page.work import Made
from latentdiff.app.sampling.images import TEXT_KEY
from latentdiff.config.errors import InputError, RunError

if TYPE_CHECKING:
    import gradio as gr

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Results:
    """Components, and what they show at each moment, as gradio takes it: component -> value."""

    make: gr.Button
    stop: gr.Button
    images: gr.Gallery
    status: gr.HTML
    details: gr.Column
    """Around what follows; shown when there is something."""
    files: gr.File
    command: gr.Textbox
    about: gr.JSON

    @classmethod
    def laid_out(cls) -> Results:
        """Where the present gradio context is."""
        import gradio as gr

        with gr.Row():
            make = gr.Button("Make", variant="primary", elem_id="make")
            stop = gr.Button("Stop", variant="stop", elem_id="stop", interactive=False)
        images = gr.Gallery(label="Images", format="png", object_fit="contain", elem_id="images")
        status = gr.HTML(elem_id="status")
        with gr.Column(visible=False) as details:
            files = gr.File(
                label="Files, with their metadata", file_count="multiple", interactive=False, elem_id="files"
            )
            command = gr.Textbox(
                label="The same with sample.py", buttons=["copy"], interactive=False, elem_id="command"
            )
            with gr.Accordion("Metadata of the first image", open=False):
                about = gr.JSON(show_label=False)
        return cls(make, stop, images, status, details, files, command, about)

    @property
    def components(self) -> list[gr.components.Component]:
        return list(vars(self).values())

    def waiting(self) -> dict:
        """A form was sent."""
        import gradio as gr

        hidden = gr.update(visible=False)
        return {self.status: "waiting for the model", self.details: hidden, **self._buttons(running=True)}

    def going_on(self, told: Progress | None) -> dict:
        """``None``: as before."""
        import gradio as gr

        if told is None:
            return {self.status: gr.update()}
        pictures = list(told.images.permute(0, 2, 3, 1).numpy())
        return {self.images: self._tiles(pictures), self.status: f"step {told.step} of {told.total}"}

    def made(self, made: Made) -> dict:
        import gradio as gr

        note = f"; {html.escape(made.note)}" if made.note else ""
        return {
            self.images: self._tiles([str(path) for path in made.files]),
            self.details: gr.update(visible=True),
            self.files: [str(path) for path in (*made.files, *made.drawn)],
            self.command: made.command,
            self.about: {**made.about, TEXT_KEY: json.loads(made.about[TEXT_KEY])},
            **self.ended(f"{len(made.files)} made{note}"),
        }

    def failed(self, error: Exception) -> dict:
        """Stopped, or with the message where the form is at fault; the program's output has everything else."""
        if isinstance(error, StoppedError):
            return self.ended("stopped")
        said = str(error)
        if not isinstance(error, InputError | RunError):
            _log.error("a request failed", exc_info=error)
            said = f"failed: {type(error).__name__}; the program's output says more"
        return self.ended(f'<span class="fault">{html.escape(said)}</span>')

    def ended(self, said: str) -> dict:
        return {self.status: said, **self._buttons(running=False)}

    def _tiles(self, pictures: list) -> dict:
        import gradio as gr

        return gr.update(value=pictures, columns=2 if len(pictures) <= 4 else 4)

    def _buttons(self, *, running: bool) -> dict:
        import gradio as gr

        return {self.make: gr.update(interactive=not running), self.stop: gr.update(interactive=running)}
