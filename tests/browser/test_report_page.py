"""report.html in Chromium, as a reader sees it."""

import pytest
import torch

from latentdiff.evaluation.neighbours import nearest
from latentdiff.evaluation.page import Pictures, write_page

pytestmark = pytest.mark.browser
EVIL = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title='taken over'\">"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = {f"number_{i}": 10.0**i / 3 for i in range(6)}
    near = nearest(torch.rand(2, 4), [(torch.rand(9, 4), images.repeat(2, 1, 1, 1)[:9])], "net")
    path = tmp_path_factory.mktemp("page") / "report.html"
    card = {"schema": 2, "model": {"checkpoint": EVIL}, "config": {"values": {"a": "b" * 500}}}
    found = {"results": {"metric": values}, "controls": {EVIL: {"metric": values}}, "card": card}
    captions = [EVIL, "word " * 60, "l" * 300, "", "short", "short"]
    samples = Pictures(images, captions, [("original", images)])
    write_page(path, title="evaluation", found=found, command=EVIL, samples=samples, neighbours=near)
    return path


@pytest.fixture
def opened(browser, report):
    def visit(width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.heard = []
        page.on("request", lambda request: page.heard.append(request.url))
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.goto(report.as_uri())
        page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
        return page

    return visit


def test_nothing_runs_and_nothing_is_fetched(opened, report):
    page = opened()
    assert page.title() == "evaluation"
    assert [url for url in page.heard if not url.startswith("data:")] == [report.as_uri()]
    assert page.locator("script").count() == 0
    assert page.locator("figcaption").first.inner_text() == EVIL


def test_every_image_is_there(opened):
    page = opened()
    sizes = page.eval_on_selector_all("img", "all => all.map(one => [one.naturalWidth, one.width])")
    assert len(sizes) == 6 * 2 + 2 * 4
    assert {tuple(size) for size in sizes} == {(16, 128)}
    assert page.eval_on_selector("img", "one => getComputedStyle(one).imageRendering") == "pixelated"


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_no_wider_than_its_window(opened, width):
    page = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_numbers_are_set_flush_right_with_figures_of_one_width(opened):
    page = opened()
    cells = page.locator("td.own")
    assert cells.count() == 6
    edges = cells.evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
    assert max(edges) - min(edges) < 0.5
    style = "all => all.map(one => [getComputedStyle(one).textAlign, getComputedStyle(one).fontVariantNumeric])"
    assert {tuple(one) for one in cells.evaluate_all(style)} == {("right", "tabular-nums")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(opened, scheme):
    page = opened(scheme=scheme)
    colours = "one => [getComputedStyle(one).color, getComputedStyle(document.body).backgroundColor]"
    for selector in ("body", ".quiet", "figcaption", "tr.metric th"):
        ink, paper = (luminance(colour) for colour in page.eval_on_selector(selector, colours))
        assert (paper > ink) == (scheme == "light")
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, "the contrast of WCAG 2, level AA"


def luminance(colour):
    """Relative luminance of ``rgb(r, g, b)`` as WCAG 2 defines it."""
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
