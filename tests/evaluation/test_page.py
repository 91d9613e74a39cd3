import base64
import io
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff.evaluation.neighbours import nearest
from latentdiff.evaluation.page import Pictures, write_page

CARD = {
    "schema": 2,
    "model": {"checkpoint": "runs/<a>", "kind": "diffusion", "weights": "ema"},
    "protocol": {"generation": {"steps": 4, "guidance": {"scale": 2.0}}, "samples": {"count": 2}},
    "observed": {"duplicates": 0},
    "environment": {"packages": {"torch": "2.8"}},
    "wall_seconds": 1.5,
    "config": {"values": {"prompt": "</pre><script>1</script>"}},
}
FOUND = {
    "results": {
        "captions": {"one_object": {"shape": 0.5}, "shuffled": {"one_object": {"shape": 0.25}}, "curve": [1, 2]},
        "frechet": {"fd_x_n2": 12.34567, "psnr": "inf"},
    },
    "controls": {"gaussian": {"frechet": {"fd_x_n2": 50.0}}},
    "repeats": {"count": 3, "sd": {"frechet": {"fd_x_n2": 0.25}}},
    "card": CARD,
}
EVIL = "<script>alert('&')</script> \"a\" onerror=x"


class Page(HTMLParser):
    """Tags, attributes and texts, as a browser would find them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.rows, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and "tr" in self.open:
            self.rows[-1].append(data)
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(tmp_path):
    def write(**given):
        options = {"title": "a", "found": FOUND, "command": "python evaluate.py card=x", **given}
        write_page(tmp_path / "report.html", **options)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write


def images(count, seed=0, size=8):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return torch.from_numpy(pixels)


def pixels(source):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))))


def test_numbers_stand_beside_their_controls(page):
    rows = page().rows
    assert rows[0] == ["number", "samples", "shuffled", "Gaussian latents"]
    assert ["one_object.shape", "0.5000", "0.2500"] in rows
    assert ["fd_x_n2", "12.3457 ± 0.2500", "50.0000"] in rows
    assert ["psnr", "inf"] in rows
    assert not any("curve" in row for row in rows), "lists are left to results.json"
    assert ["generation.guidance.scale", "2.0"] in rows


def test_what_others_wrote_is_text(page):
    found = page(title=EVIL, command=EVIL, samples=Pictures(images(2), [EVIL, "plain"]))
    assert found.all("script") == []
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    captions = [unescape(text) for text in found.texts]
    assert captions.count(EVIL) == 4, "as title, as heading, as command and as caption"
    assert found.all("img")[0]["alt"] == EVIL


def test_nothing_is_fetched(page, tmp_path):
    curve = tmp_path / "fd.svg"
    curve.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    found = page(samples=Pictures(images(2)), curves=[curve])
    assert "default-src 'none'" in found.all("meta")[1]["content"]
    sources = [attributes["src"] for attributes in found.all("img")]
    assert [source.partition(";")[0] for source in sources] == ["data:image/svg+xml", *["data:image/png"] * 2]
    links = {"link", "script", "iframe", "a", "object"}
    assert not [tag for tag, _ in found.tags if tag in links]
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"url\(|https?://|@import", text)


def test_samples_are_shown_to_the_pixel_beside_what_they_were_made_from(page):
    made, originals = images(3, seed=1), images(3, seed=2)
    found = page(samples=Pictures(made, None, [("original", originals)])).all("img")
    assert len(found) == 6
    for i in range(3):
        assert torch.equal(pixels(found[2 * i]["src"]).permute(2, 0, 1), originals[i])
        assert torch.equal(pixels(found[2 * i + 1]["src"]).permute(2, 0, 1), made[i])
    assert {one["class"] for one in found} == {"small"}
    assert {one["width"] for one in found} == {"128"}
    large = page(samples=Pictures(images(1, size=200))).all("img")[0]
    assert (large.get("class"), large["width"]) == (None, "200")


def test_neighbours_stand_beside_their_sample_with_distances(page):
    training = images(5, seed=3)
    features = torch.tensor([[3.0], [0.0], [9.0], [1.5], [2.0]])
    found = nearest(torch.tensor([[0.0], [9.0]]), [(features[:2], training[:2]), (features[2:], training[2:])], "net")
    shown = page(samples=Pictures(images(4)), neighbours=found)
    assert "1.500" in shown.texts
    beside = shown.all("img")[4 + 1 : 4 + 4]
    for one, index in zip(beside, (1, 3, 4)):
        assert torch.equal(pixels(one["src"]).permute(2, 0, 1), training[index])
    assert any("5 training images" in text and "(net)" in text for text in shown.texts)


def test_points_of_a_sweep_are_rows(page):
    found = page(found={}, points={"steps-2": {"f.fd": 3.0}, "steps-4": {"f.fd": 2.0, "f.kid": 0.5}})
    assert found.rows == [["point", "f.fd", "f.kid"], ["steps-2", "3.0000"], ["steps-4", "2.0000", "0.5000"]]


def test_a_page_without_a_card_or_images(page):
    found = page(found={"results": {"f": {"x": 1}}})
    assert ["x", "1"] in found.rows
    assert found.all("details") == []
