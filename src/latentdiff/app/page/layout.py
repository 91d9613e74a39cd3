"""What the demo page looks like (gradio), and what its buttons do."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latentdiff.app.page.form import MOST, NOISE, OWN, STARTS, Form, may_start, pictures_read
from latentdiff.app.page.progress import Visitor
from latentdiff.app.page.results import Results
from latentdiff.app.page.work import Made, Studio

if TYPE_CHECKING:
    import gradio as gr

VISITORS = 20
"""Who wait at the same time; the model makes the images of one."""
PREFIX = "latentdiff-page-"
"""Of temporary folders."""
SMALL = 192
"""Pixels of a side below which images are shown enlarged, with their pixels to be seen."""
STYLE = """
footer {display: none !important}
#status {min-height: 1.5em}
#status .fault {color: #b3261e; font-weight: 600}
.dark #status .fault {color: #ffb4ab}
.pixels img {image-rendering: pixelated}
#images .grid-wrap {max-height: none}
"""
LABELS = {
    "image": "Image",
    "map": "Map of classes (PNG)",
    "drawing": "Image with a hole: paint what is to be made anew",
}


def serve(studio: Studio, *, host: str, port: int, share: bool) -> gr.Blocks:
    """The page, served by a thread of its own."""
    import gradio as gr

    page = layout(studio)
    page.queue(api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=STYLE,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size="32mb",
    )
    return page


def layout(studio: Studio) -> gr.Blocks:
    """What is asked for on the left, what is made of it on the right; on a phone one below the other."""
    import gradio as gr

    title = f"latentdiff: {studio.name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"## {title}")
        with gr.Row():
            with gr.Column(min_width=320):
                fields = {**_conditions(studio), **_pictures(studio), **_settings(studio)}
            with gr.Column(min_width=320, elem_classes=["pixels"] if max(studio.size) <= SMALL else []):
                results = Results.laid_out()
        _connect(studio, fields, results)
    return page


def _conditions(studio: Studio) -> dict[str, gr.Component]:
    """Texts, class and number."""
    import gradio as gr

    reads, fields = studio.reads, {}
    if reads.captions:
        fields["prompt"] = gr.Textbox(label="Prompt", placeholder="what the images show", elem_id="prompt")
    if studio.takes_negative:
        fields["negative_prompt"] = gr.Textbox(label="Negative prompt", placeholder="what they do not show")
    if reads.labels:
        names = reads.class_names or [str(i) for i in range(reads.classes)]
        fields["label"] = gr.Dropdown([(name, i) for i, name in enumerate(names)], value=0, label="Class")
    if "numbers" in reads.fields:
        fields["numbers"] = gr.Number(0, label="Number")
    return fields


def _pictures(studio: Studio) -> dict[str, gr.Component]:
    """What the model reads; or a choice of what to begin with, and what that needs."""
    import gradio as gr

    read = pictures_read(studio.reads)
    fields = {name: _picture(name, studio) for name in read}
    if not may_start(studio.reads):
        return fields
    start = gr.Radio(list(STARTS), value=NOISE, label="Begin with", elem_id="start")
    groups = {}
    for word, names in STARTS.items():
        with gr.Column(visible=False) as groups[word]:
            fields |= {name: _strength() if name == "strength" else _picture(name, studio) for name in names}
    start.change(
        lambda chosen: [gr.update(visible=word == chosen) for word in groups],
        start,
        list(groups.values()),
        queue=False,
        api_visibility="private",
    )
    return {**fields, "start": start}


def _strength() -> gr.Component:
    import gradio as gr

    return gr.Slider(
        0.05, 1, value=Form().strength, step=0.05, label="Strength", info="how much of the image is made anew"
    )


def _picture(name: str, studio: Studio) -> gr.Component:
    import gradio as gr

    if name != "drawing":
        as_it_is = {"type": "filepath", "image_mode": None}  # a map in colours would be none
        return gr.Image(label=LABELS[name], sources=["upload", "clipboard"], elem_id=name, **as_it_is)
    return gr.ImageEditor(
        label=LABELS[name],
        type="filepath",
        format="png",
        sources=["upload", "clipboard"],
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=max(2, min(studio.size) // 12), colors=[("#ff00ff", 0.7)], color_mode="fixed"),
        elem_id=name,
    )


def _settings(studio: Studio) -> dict[str, gr.Component]:
    import gradio as gr

    with gr.Row():
        with gr.Column(min_width=140):
            seed = gr.Number(Form().seed, label="Seed", precision=0, elem_id="seed")
            another = gr.Button("New seed", size="sm", elem_id="new-seed")
        count = gr.Slider(1, MOST, value=Form().count, step=1, label="Images", min_width=140, elem_id="count")
    another.click(lambda: random.randrange(2**31), None, seed, queue=False, api_visibility="private")
    with gr.Row():
        sampler = gr.Dropdown(list(studio.samplers), value=OWN, label="Sampler", elem_id="sampler")
        steps = gr.Number(studio.samplers[OWN], label="Steps", precision=0, elem_id="steps")
    sampler.change(studio.samplers.get, sampler, steps, queue=False, api_visibility="private")
    fields = {"seed": seed, "count": count, "sampler": sampler, "steps": steps}
    for name, own in studio.scales.items():
        part = name.removeprefix("+guidance.scales.").removeprefix("guidance.scale")
        label = f"Guidance scale of {part}" if part else "Guidance scale"
        fields[name] = gr.Slider(0, max(20.0, 2 * own), value=own, step=0.1, label=label)
    return fields


def _connect(studio: Studio, fields: dict[str, gr.Component], results: Results) -> None:
    import gradio as gr

    def work(visitor: Visitor, *values: object) -> Iterator[dict]:
        visitor.stopped = False
        yield results.waiting()
        with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as place:
            try:
                for told in studio.follow(_form(list(fields), values), Path(place), visitor):
                    yield results.made(told) if isinstance(told, Made) else results.going_on(told)
            except Exception as error:
                yield results.failed(error)
            finally:
                visitor.stopped = True  # also one who is gone

    def end(visitor: Visitor) -> None:
        visitor.stopped = True

    visitor = gr.State(Visitor())  # everyone's own
    triggers = [results.make.click, *([fields["prompt"].submit] if "prompt" in fields else [])]
    inputs, outputs = [visitor, *fields.values()], results.components
    gr.on(triggers, work, inputs, outputs, show_progress="hidden", concurrency_limit=VISITORS, api_visibility="private")
    results.stop.click(end, visitor, queue=False, api_visibility="private")


def _form(names: list[str], values: tuple[object, ...]) -> Form:
    given = dict(zip(names, values))
    scales = {name: given.pop(name) for name in names if "guidance." in name}
    return Form(**given, scales=scales)
