"""What an evaluation is compared with, on a handful of photographs that nobody took."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from latentdiff.app.evaluation import reference_work, references
from latentdiff.app.evaluation.reference import Wanted
from latentdiff.app.evaluation.references import references_for
from latentdiff.app.evaluation.subject import Subject
from latentdiff.app.ranks import Ranks
from latentdiff.config.errors import InputError
from latentdiff.data.datamodule import DataModule
from latentdiff.data.shards import write_shards
from latentdiff.data.sources import ShardSource
from latentdiff.evaluation.baselines import RealImages
from latentdiff.evaluation.stage_one import MeasuredReconstruction
from latentdiff.metrics.features.random_conv import RandomConvFeatures
from latentdiff.metrics.frechet import FrechetDistance
from latentdiff.metrics.kernel_distance import KernelDistance
from latentdiff.metrics.on_features import OnFeatures

ALONE = Ranks(0, 1, torch.device("cpu"), None)
SIZE, COUNT = 16, 7


class Published(RandomConvFeatures):
    """Random features that pass for those of the published FID."""

    published = True

    def __init__(self):
        super().__init__(dim=2048)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for name, seed, count in (("train", 0, 12), ("val", 1, COUNT)):
        samples = []
        for picture in np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            samples.append({"png": file.getvalue()})
        write_shards(samples, folder / name)
    return folder


def opened(shards, **changes):
    source = ShardSource(train=str(shards / "train"), val=str(shards / "val"))
    return DataModule(
        **{"source": source, "image_size": SIZE, "global_batch": 4, "seed": 0, "num_workers": 0, **changes}
    )


def subject(**changes):
    given = {"generate": RealImages(device="cpu"), "identity": {}, "name": "x", "data": None, "config": None, **changes}
    return Subject(**given)


def settings(**changes):
    return OmegaConf.create({"reference": None, "num_reference": None, "num_images": 5, "batch_size": 2, **changes})


def metric(*measures, features=None):
    return OnFeatures(features=features or RandomConvFeatures(), measures=measures or [FrechetDistance()])


def asked(where, shards, *, cfg=None, metrics=None, data="own", of=None):
    data = opened(shards) if data == "own" else data
    return references_for(cfg or settings(), metrics or {"m": metric()}, data, of or subject(), ALONE, where)


def features_of(images, features=None):
    return (features or RandomConvFeatures())(images, None)["pool"]


def made_file(shards, path, **changes):
    """As latentdiff reference writes it."""
    metrics = {"m": metric(features=changes.pop("features", None))}
    data, wanted = opened(shards, **changes), Wanted(split="train")
    own = SimpleNamespace(batch_size=5, trainer=None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reference_work, "_opened", lambda node, ranks: data)
        reference_work._made(own, None, metrics, path, path.parent / "work", wanted, ALONE)
    return str(path)


def test_the_first_validation_images_are_measured(shards, tmp_path):
    found = asked(tmp_path, shards)["m"]
    images = opened(shards).preview(COUNT).image
    torch.testing.assert_close(found.features("pool"), features_of(images[:5]))
    assert found.count == 5
    more = asked(tmp_path / "more", shards, cfg=settings(num_reference=7))["m"]
    torch.testing.assert_close(more.features("pool"), features_of(images))
    about = found.describe()
    assert (about["dataset"]["split"], about["images"]["size"], len(about["images_sha256"])) == ("val", SIZE, 64)
    assert about["images_sha256"] != more.describe()["images_sha256"]


def test_what_was_measured_is_not_measured_again_unless_it_is_of_something_else(shards, tmp_path, monkeypatch):
    first = asked(tmp_path, shards)["m"].features("pool")
    monkeypatch.setattr(RealImages, "__call__", lambda *given: pytest.fail("measured again"))
    assert torch.equal(asked(tmp_path, shards)["m"].features("pool"), first)
    with pytest.raises(InputError, match="unfinished work"):
        asked(tmp_path, shards, data=opened(shards, background=(0, 0, 0)))


def test_real_images_are_used_again_for_another_measure(shards, tmp_path, monkeypatch):
    first = asked(tmp_path, shards, metrics={"m": metric(KernelDistance(subset_size=3))})["m"].features("pool")
    monkeypatch.setattr(RealImages, "__call__", lambda *given: pytest.fail("measured again"))
    again = asked(tmp_path, shards, metrics={"m": metric(KernelDistance(subset_size=4))})["m"]
    assert torch.equal(again.features("pool"), first)


def test_metrics_that_compare_nothing_need_no_reference(shards, tmp_path):
    other = {"other": SimpleNamespace()}
    assert asked(tmp_path, shards, metrics=other) == {}
    with pytest.raises(InputError, match=r"^reference: none of the metrics compares"):
        asked(tmp_path, shards, metrics=other, cfg=settings(reference="x.npz"))
    with pytest.raises(InputError, match=r"^num_reference: none of the metrics compares"):
        asked(tmp_path, shards, metrics=other, cfg=settings(num_reference=3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "given", "said"),
    [
        ({"num_reference": 8}, {}, "8 real images are wanted, there are 7 validation samples"),
        ({"num_reference": 1}, {}, "at least 2 real images"),
        ({}, {"data": None, "of": subject(given=(SIZE, SIZE))}, "there are no data to compare with"),
        ({}, {"of": subject(given=(SIZE, 8))}, "data.size: 16, but the images to be measured have 16x8"),
        ({}, {"metrics": {"m": metric(KernelDistance(subset_size=6))}}, "reference: its 5 images are too few"),
        ({}, {"metrics": {"m": metric(FrechetDistance(strict=True))}}, "10000 real images or more, these are 5"),
        ({"reference": "none.npz"}, {}, "there is no file 'none.npz'"),
        ({"reference": "edm2.pkl"}, {}, "is no .npz file"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_image(shards, tmp_path, monkeypatch, changes, given, said):
    monkeypatch.setattr(RealImages, "__call__", lambda *given: pytest.fail("measured"))
    with pytest.raises(InputError, match=said):
        asked(tmp_path, shards, cfg=settings(**changes), **given)


def test_a_first_stage_is_compared_with_its_originals(shards, tmp_path):
    stage_one = subject(generate=MeasuredReconstruction.__new__(MeasuredReconstruction))
    assert asked(tmp_path, shards, of=stage_one)["m"].count == 5
    with pytest.raises(InputError, match="originals of its images"):
        asked(tmp_path, shards, of=stage_one, cfg=settings(num_reference=3))


def test_a_file_gives_what_was_measured(shards, tmp_path):
    file = made_file(shards, tmp_path / "r.npz")
    images = opened(shards).ranges_of(opened(shards).train_set)(range(12)).image
    found = asked(tmp_path, shards, cfg=settings(reference=file))["m"]
    torch.testing.assert_close(found.features("pool"), features_of(images))
    assert found.describe()["dataset"]["fingerprint"] == opened(shards).fingerprint()


def test_a_file_of_other_data_than_the_checkpoint_s_is_warned_of(shards, tmp_path, monkeypatch, capsys):
    cfg, of = settings(reference=made_file(shards, tmp_path / "r.npz")), subject(path=Path("checkpoint"))
    for own, warned in (
        ({"fingerprint": opened(shards).fingerprint()}, False),
        ({"fingerprint": "x"}, True),
        (None, False),
    ):
        monkeypatch.setattr(references.store, "read_manifest", lambda path, own=own: SimpleNamespace(data=own))
        asked(tmp_path, shards, cfg=cfg, of=of)
        assert ("made of other data (webdataset) than" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("made", "given", "said"),
    [
        ({"image_size": 32}, {}, "made of images with size 32, here it is 16"),
        ({"background": (0, 0, 0)}, {}, r"with background \[0, 0, 0\], here it is \[255, 255, 255\]"),
        ({}, {"data": None, "of": subject(given=(32, 32))}, "with size 16, here it is 32"),
        ({}, {"data": None, "of": subject(given=(16, 32))}, "with size 16, here it is 16x32"),
        ({}, {"metrics": {"m": metric(features=RandomConvFeatures(seed=1))}}, "metrics look with randconv-v1-seed1"),
        ({}, {"metrics": {"m": metric(KernelDistance(subset_size=13))}}, "reference: its 12 images are too few"),
        ({}, {"metrics": {"m": metric(FrechetDistance(strict=True))}}, "10000 real images or more, these are 12"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(shards, tmp_path, made, given, said):
    file = made_file(shards, tmp_path / "r.npz", **made)
    with pytest.raises(InputError, match=said):
        asked(tmp_path, shards, cfg=settings(reference=file), **given)


def adm_file(folder, images=None):
    arrays = {"mu": np.full(2048, 0.5), "sigma": np.eye(2048)} | ({} if images is None else {"arr_0": images})
    np.savez(folder / "adm.npz", **arrays)
    return settings(reference=str(folder / "adm.npz"))


def test_moments_of_an_unknown_resize_are_warned_of(shards, tmp_path, capsys):
    spatial = {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    for beside, warned in (({}, 1), (spatial, 0)):
        np.savez(tmp_path / "m.npz", mu=np.zeros(2048), sigma=np.eye(2048), **beside)
        metrics = {name: metric(features=Published()) for name in ("m", "n")}
        asked(tmp_path, shards, cfg=settings(reference=str(tmp_path / "m.npz")), metrics=metrics)
        assert capsys.readouterr().err.count("does not say how images were resized") == warned


def test_moments_of_others_are_enough_for_a_frechet_distance_by_the_published_network(shards, tmp_path):
    cfg = adm_file(tmp_path)
    found = asked(tmp_path, shards, cfg=cfg, metrics={"m": metric(features=Published())})["m"]
    assert torch.equal(found.moments("pool").mean, torch.full((2048,), 0.5, dtype=torch.float64))
    kernel = metric(FrechetDistance(), KernelDistance(subset_size=2), features=Published())
    with pytest.raises(InputError, match="moments alone"):
        asked(tmp_path, shards, cfg=cfg, metrics={"m": kernel})
    with pytest.raises(InputError, match="the metrics look with randconv-v1"):
        asked(tmp_path, shards, cfg=cfg)


def test_images_in_the_file_are_measured_where_the_moments_are_not_enough(shards, tmp_path, monkeypatch):
    images = np.random.default_rng(3).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    cfg, pictures = adm_file(tmp_path, images), torch.from_numpy(images).permute(0, 3, 1, 2)
    own = asked(tmp_path / "own", shards, cfg=cfg)["m"]
    torch.testing.assert_close(own.features("pool"), features_of(pictures))
    both = metric(FrechetDistance(), KernelDistance(subset_size=2), features=Published())
    found = asked(tmp_path / "both", shards, cfg=cfg, metrics={"m": both})["m"]
    torch.testing.assert_close(found.features("pool"), features_of(pictures, Published()))
    assert torch.equal(found.moments("pool").mean, torch.full((2048,), 0.5, dtype=torch.float64))
    monkeypatch.setattr(references.GivenImages, "__call__", lambda *given: pytest.fail("measured"))
    asked(tmp_path / "moments", shards, cfg=cfg, metrics={"m": metric(features=Published())})
    with pytest.raises(InputError, match="have 16x16 pixels, those to be measured 8x8"):
        asked(tmp_path / "size", shards, cfg=cfg, data=None, of=subject(given=(8, 8)))
