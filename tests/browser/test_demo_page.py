"""The demo page in Chromium: a tiny model, trained here, is asked for images as a visitor would ask."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import latentdiff
from latentdiff.app.page import verb as page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = Path(latentdiff.__file__).resolve().parents[1]
SIZE = 32
TINY = ("experiment=ldm_txt2img", "debug=[tiny_unet,tiny_text]", "max_batches=4", "trainer=cpu")


def program(name: str, *overrides: str, cwd: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / f"{name}.py"), *overrides]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a checkpoint of text to image in ``ldm``, and a picture."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'latentdiff[demo]'")
    home = tmp_path_factory.mktemp("demo")
    places = [f"paths.{name}={home / name}" for name in ("data", "outputs", "first_stages")]
    program("train", *TINY, *places, f"run_dir={home / 'ldm'}", cwd=home)
    ramp = np.linspace(40, 220, SIZE).astype(np.uint8)
    Image.fromarray(np.stack([ramp[None].repeat(SIZE, 0), ramp[:, None].repeat(SIZE, 1)] * 2, 2)[:, :, :3]).save(
        home / "ramp.png"
    )
    return home


@pytest.fixture(scope="module")
def served(home: Path, tmp_path_factory: pytest.TempPathFactory):
    """Its address, and the model behind it."""
    page.prepare(str(tmp_path_factory.mktemp("gradio")))
    from latentdiff.app.page.layout import serve
    from latentdiff.app.page.work import Studio

    studio = Studio.of(str(home / "ldm"), device="cpu", first_stage=None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    blocks = serve(studio, host="127.0.0.1", port=port, share=False)
    yield blocks.local_url, studio
    blocks.close(verbose=False)
    studio.close()


@pytest.fixture
def visit(browser, served):
    """A new visitor's page; nothing but the page's own address was asked when they leave."""
    address, _ = served
    heard, opened = [], []

    def come(width: int = 1280):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        opened.append(tab)
        tab.on("request", lambda request: heard.append(request.url))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.goto(address)
        tab.get_by_label("Prompt", exact=True).fill("a red circle")
        tab.get_by_label("Steps").fill("4")
        return tab

    yield come
    for tab in opened:
        tab.close()
    assert [url for url in heard if not url.startswith((address, "data:", "blob:"))] == []


def downloads(tab, folder: Path) -> dict[str, Path]:
    """The files that the page offers, by name."""
    found = {}
    for link in tab.locator("#files a[download]").all():
        with tab.expect_download() as started:
            link.click()
        path = folder / started.value.suggested_filename
        started.value.save_as(path)
        found[path.name] = path
    return found


def made(tab, count: int = 4) -> None:
    tab.click("#make")
    tab.wait_for_function("document.querySelector('#make').disabled")  # what was made before is gone
    tab.get_by_text(f"{count} made").wait_for(timeout=15_000)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def run_the_command(tab, folder: Path, home: Path) -> None:
    python, script, *overrides = shlex.split(tab.locator("#command textarea").input_value())
    assert (python, script) == ("python", "sample.py")
    program("sample", *overrides, f"run_dir={folder / 'run'}", cwd=folder)


def test_a_prompt_becomes_the_images_of_sample_py(visit, home: Path, tmp_path: Path) -> None:
    tab = visit()
    tab.get_by_label("Negative prompt").fill("it's ${blue}, [big]")
    tab.locator("#seed input").fill("5")
    made(tab)
    sizes = "all => all.filter(one => one.complete).map(one => one.naturalWidth)"
    tab.wait_for_function("document.querySelectorAll('#images .thumbnail-item img').length == 4")
    assert tab.eval_on_selector_all("#images .thumbnail-item img", sizes) == [SIZE] * 4
    files = downloads(tab, tmp_path)
    assert list(files) == [f"000{i}-seed{5 + i}.png" for i in range(4)]
    text = Image.open(files["0000-seed5.png"]).text
    assert (text["prompt"], text["negative_prompt"]) == ("a red circle", "it's ${blue}, [big]")
    assert json.loads(text["latentdiff"])["steps"] == 4
    run_the_command(tab, tmp_path, home)
    for name, path in files.items():
        assert path.read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_painted_hole_is_filled(visit, home: Path, tmp_path: Path) -> None:
    tab = visit()
    tab.get_by_label("A hole in an image").check()
    tab.locator("#drawing canvas").first.wait_for(state="attached")
    tab.wait_for_timeout(1000)  # gradio's editor sets itself up
    tab.locator("#drawing input[type=file]").first.set_input_files(home / "ramp.png")
    tab.wait_for_timeout(1500)  # the picture grows to its place
    box = tab.locator("#drawing canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(x - 30, y)
    tab.mouse.down()
    tab.mouse.move(x + 30, y, steps=12)
    tab.mouse.up()
    tab.wait_for_timeout(500)
    made(tab)
    files = downloads(tab, tmp_path)
    hole = pixels(files["mask.png"])[:, :, 0] == 255
    assert 0 < hole.mean() < 0.5
    assert hole[SIZE // 2, SIZE // 2]
    assert np.array_equal(pixels(files["image.png"]), pixels(home / "ramp.png"))
    image = pixels(files["0000-seed0.png"])
    assert np.array_equal(image[~hole], pixels(home / "ramp.png")[~hole])
    assert np.abs(image - pixels(home / "ramp.png"))[hole].mean() > 5
    run_the_command(tab, tmp_path, home)
    assert files["0003-seed3.png"].read_bytes() == (tmp_path / "run" / "0003-seed3.png").read_bytes()


def test_an_image_is_varied_more_or_less(visit, home: Path, tmp_path: Path) -> None:
    tab = visit()
    tab.get_by_label("Steps").fill("20")
    tab.get_by_label("An image", exact=True).check()
    tab.locator("#image input[type=file]").first.set_input_files(home / "ramp.png")
    tab.locator("#image img").first.wait_for()
    errors = []
    for strength in ("0.1", "1"):
        tab.get_by_label("number input for Strength").fill(strength)
        tab.get_by_label("number input for Strength").press("Tab")
        made(tab)
        image = pixels(downloads(tab, tmp_path)["0000-seed0.png"])
        errors.append(np.abs(image - pixels(home / "ramp.png")).mean())
    assert errors[0] < errors[1]


def test_stop_stops_and_the_next_visitor_is_served(visit, served) -> None:
    _, studio = served
    tab, other = visit(), visit()
    tab.get_by_label("Steps").fill("1000")
    tab.click("#make")
    tab.locator("#status").get_by_text("of 1000").wait_for(timeout=30_000)
    assert tab.locator("#images .thumbnail-item img").count() == 4, "a preview"
    other.click("#make")
    other.get_by_text("waiting for the model").wait_for()
    tab.click("#stop")
    tab.get_by_text("stopped").wait_for(timeout=10_000)
    other.get_by_text("4 made").wait_for(timeout=30_000)
    calls = []
    handle = studio.model.denoiser.backbone.register_forward_hook(lambda *_: calls.append(1))
    tab.wait_for_timeout(500)
    handle.remove()
    assert calls == []
    assert tab.locator("#make").is_enabled()
    made(other)


def test_faults_are_said_on_the_page(visit, tmp_path: Path) -> None:
    tab = visit()
    fault = tab.locator("#status .fault")
    tab.get_by_label("Steps").fill("0")
    tab.click("#make")
    fault.get_by_text("Steps: expected 1 to 1000, got 0").wait_for()
    tab.get_by_label("Steps").fill("4")
    tab.get_by_label("A hole in an image").check()
    tab.click("#make")
    fault.get_by_text("upload one and paint over").wait_for()
    tab.get_by_label("An image", exact=True).check()
    Image.new("RGB", (40, 40)).save(tmp_path / "black.png")
    tab.locator("#image input[type=file]").first.set_input_files(tmp_path / "black.png")
    tab.locator("#image img").first.wait_for()
    tab.get_by_label("number input for Strength").fill("0.1")
    tab.get_by_label("number input for Strength").press("Tab")
    tab.click("#make")
    fault.get_by_text("0.1 of 4 steps is not one step").wait_for()
    tab.get_by_label("Noise").check()
    made(tab)
    assert fault.count() == 0


def test_a_sampler_brings_its_steps_and_a_new_seed_is_new(visit) -> None:
    tab = visit()
    tab.click("#sampler input")
    tab.get_by_role("option", name="heun_karras").click()
    tab.wait_for_function("document.querySelector('#steps input').value == '18'")
    tab.click("#new-seed")
    tab.wait_for_function("document.querySelector('#seed input').value != '0'")
    made(tab)
    assert "sampler=heun_karras sampler.steps=18" in tab.locator("#command textarea").input_value()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_its_window(visit, width: int) -> None:
    tab = visit(width)
    made(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("#make").bounding_box()["width"] <= width


def test_no_file_of_the_machine_can_be_read_through_it(visit, served, home: Path) -> None:
    address, _ = served
    tab = visit()
    for path in (home / "ramp.png", home / "ldm" / "config.yaml", REPOSITORY / "README.md"):
        answer = tab.request.get(f"{address}gradio_api/file={path}")
        assert answer.status == 403, path
