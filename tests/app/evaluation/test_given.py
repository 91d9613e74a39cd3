"""Evaluations of what is no checkpoint: images made elsewhere, and a tiny pipeline of diffusers with random weights."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from latentdiff.app.evaluation.diffusers_pipeline import DiffusersPipeline
from latentdiff.app.evaluation.given import images_subject, pipeline_subject
from latentdiff.app.ranks import Ranks
from latentdiff.checkpoint.foreign.text import tokenizer
from latentdiff.config.errors import InputError
from latentdiff.diffusion.noise import keyed_generator
from latentdiff.types import Batch

ALONE = Ranks(0, 1, torch.device("cpu"), None)
PROMPTS, SIDE = ["a photo of a red cube, on the table", "blue", "two cats"], 16


def settings(**changes):
    own = {"images": None, "pipeline": None, "prompts": None, "data": None, "num_images": 3, "seed": 0, "lossy": False}
    groups = {
        "sampler": {"steps": None},
        "guidance": {"scale": None},
        "first_stage": {"checkpoint": None},
        "bound": False,
    }
    return OmegaConf.create({**own, **groups, **changes})


def prompts_file(folder, lines=PROMPTS):
    path = folder / "prompts.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def test_images_with_captions_are_a_subject(folder, tmp_path):
    lines = [f"caption {i}" for i in range(5)]
    subject = images_subject(settings(images=str(folder), prompts=prompts_file(tmp_path, lines)), ALONE)
    assert (subject.given, subject.container, subject.reads_captions) == ((SIDE, SIDE), "png", True)
    assert (subject.path, subject.reconstruct, subject.stage_one) == (None, None, None)
    batch = subject.samples(range(3))
    images = subject.generate(Batch(keys=batch.keys, start=0, total=3), [0, 1, 2])
    for image, key, caption in zip(images, batch.keys, batch.caption):
        expected = torch.from_numpy(np.asarray(Image.open(folder / key)).copy()).permute(2, 0, 1)
        assert torch.equal(image, expected)
        assert caption == f"caption {key.removesuffix('.png')}"


def test_a_folder_that_has_changed_is_another_subject(folder):
    cfg = settings(images=str(folder))
    before = images_subject(cfg, ALONE).identity
    assert images_subject(cfg, ALONE).identity == before
    Image.new("RGB", (SIDE, SIDE)).save(folder / "0.png")
    assert images_subject(cfg, ALONE).identity != before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_images": 6}, "6 are wanted, there are 5 images"),
        ({"bound": True}, "bound: it is for checkpoints"),
        ({"sampler": {"steps": 5}}, r"sampler.steps: it is for checkpoints"),
        ({"guidance": {"scale": 2.0}}, r"guidance.scale: it is for checkpoints"),
        ({"guidance": {"_target_": "x", "scale": None}}, "guidance: one of latentdiff's cannot be put into"),
        ({"sampler": {"solver": {}, "steps": None}}, "sampler: one of latentdiff's cannot be put into"),
    ],
)
def test_settings_that_say_nothing_of_given_images_are_refused(folder, changes, said):
    with pytest.raises(InputError, match=said):
        images_subject(settings(images=str(folder), **changes), ALONE)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """In the manner of Stable Diffusion 1, with a safety checker named in its index."""
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("sd")
    (folder / "words").mkdir()
    tokenizer.write(folder / "words", pad_with_end=True, context_length=77)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    made = StableDiffusionPipeline(
        vae=varied(AutoencoderKL(block_out_channels=(32, 64), latent_channels=4, **kinds)),
        text_encoder=varied(CLIPTextModel(CLIPTextConfig(**sizes, vocab_size=49408, eos_token_id=49407))),
        tokenizer=CLIPTokenizer.from_pretrained(str(folder / "words")),
        unet=varied(unet),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(folder / "pipeline")
    return folder / "pipeline", made


def varied(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return module.eval()


def of(folder, tmp_path, **changes):
    own = {"pipeline": str(folder), "prompts": prompts_file(tmp_path), "sampler": {"steps": 3}, **changes}
    return pipeline_subject(settings(**own), ALONE)


def test_a_pipeline_makes_what_diffusers_makes_from_the_seeds(pipeline, tmp_path):
    folder, peer = pipeline
    subject = of(folder, tmp_path, guidance={"scale": 2.0})
    images = subject.generate(subject.samples(range(3)), [5, 6, 7])
    generators = [keyed_generator(seed, "diffusers") for seed in (5, 6, 7)]
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "np"}
    expected = peer(PROMPTS, generator=generators, height=SIDE, width=SIDE, **options).images
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (3, 3, SIDE, SIDE))
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), (expected * 255).round().astype(np.uint8))
    assert images.float().std() > 5
    assert (subject.given, subject.reads_captions, len(subject.samples)) == ((SIDE, SIDE), True, 3)


def test_an_image_depends_on_its_own_seed_and_caption_alone(pipeline, tmp_path):
    subject = of(pipeline[0], tmp_path)
    together = subject.generate(subject.samples(range(3)), [5, 6, 2**32 + 5])
    alone = subject.generate(subject.samples(range(1, 2)), [6])
    assert (together[1:2].int() - alone.int()).abs().max() <= 1
    other = subject.generate(Batch(keys=["a", "b"], caption=[PROMPTS[2]] * 2), [5, 2**32 + 5])
    assert not torch.equal(other[0], other[1])


def test_the_card_tells_scheduler_settings_and_weights(pipeline, tmp_path):
    about = of(pipeline[0], tmp_path, guidance={"scale": 2.0}).generate.describe()
    assert (about["num_inference_steps"], about["guidance_scale"]) == (3, 2.0)
    assert about["scheduler"]["name"] == "DDIMScheduler"
    assert about["scheduler"]["steps_offset"] == 1
    assert about["to_uint8"] == "round(clamp(x, 0, 1) * 255)"
    json.dumps(about)


def test_weights_are_told_as_what_was_measured_not_as_how(pipeline, tmp_path):
    subject = of(pipeline[0], tmp_path)
    assert len(subject.identity["sha256"]) == 64
    assert "sha256" not in subject.generate.describe()


def test_data_give_the_size_and_defaults_are_the_pipelines(pipeline):
    subject = pipeline_subject(settings(pipeline=str(pipeline[0]), data={"size": 32}), ALONE)
    assert (subject.given, subject.samples) == ((32, 32), None)
    about = subject.generate.describe()
    assert (about["num_inference_steps"], about["guidance_scale"]) == (50, 7.5)


def test_the_network_alone_runs_in_the_lower_precision(pipeline, tmp_path):
    given = {"device": torch.device("cpu"), "steps": 3}
    batch = Batch(keys=["a", "b"], caption=PROMPTS[:2])
    lower, whole = (
        DiffusersPipeline(pipeline[0], precision=precision, **given)(batch, [1, 2]).int()
        for precision in (torch.bfloat16, None)
    )
    assert not torch.equal(lower, whole)
    assert (lower - whole).abs().float().mean() < 3


def test_a_size_that_the_pipeline_cannot_make_is_refused(pipeline):
    with pytest.raises(InputError, match="multiples of 2 pixels, not of 17"):
        DiffusersPipeline(pipeline[0], device=torch.device("cpu"), size=17)


def changed(pipeline, tmp_path, **entries):
    """The pipeline with other entries in its index."""
    place = tmp_path / "changed"
    place.mkdir()
    for part in pipeline[0].iterdir():
        if part.is_dir():
            (place / part.name).symlink_to(part)
    index = json.loads((pipeline[0] / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps({**index, **entries}))
    return place


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"unet": ["my_unet", "Unet"]}, "programs of the folder's own are not run"),
        ({"_class_name": ["my_pipeline", "Pipeline"]}, "programs of the folder's own are not run"),
        ({"_class_name": "NoSuchPipeline"}, "diffusers cannot load"),
        ({"_class_name": "DDPMPipeline"}, "takes no 'prompt'"),
    ],
)
def test_pipelines_of_other_kinds_are_refused(pipeline, tmp_path, entries, said):
    with pytest.raises(InputError, match=said):
        of(changed(pipeline, tmp_path, **entries), tmp_path)


def test_a_safety_checker_is_left_out_and_the_card_tells_it(pipeline, tmp_path):
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    subject = of(changed(pipeline, tmp_path, **checker), tmp_path)
    assert subject.generate.describe()["left_out"] == ["safety_checker"]
    assert subject.identity["sha256"] == of(pipeline[0], tmp_path).identity["sha256"]


def test_pickled_weights_are_not_opened(pipeline, tmp_path):
    place = changed(pipeline, tmp_path)
    (place / "unet").unlink()
    (place / "unet").mkdir()
    (place / "unet" / "config.json").write_bytes((pipeline[0] / "unet" / "config.json").read_bytes())
    (place / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"cannot load .*\.safetensors"):
        of(place, tmp_path)


def test_what_a_pipeline_cannot_do_without_is_asked_for(pipeline, tmp_path):
    with pytest.raises(InputError, match="it needs captions; give prompts=FILE"):
        pipeline_subject(settings(pipeline=str(pipeline[0])), ALONE)
    with pytest.raises(InputError, match=r"has no model_index\.json"):
        of(tmp_path, tmp_path)
    made = DiffusersPipeline(pipeline[0], device=torch.device("cpu"), steps=2)
    with pytest.raises(InputError, match="every image needs a caption"):
        made(Batch(keys=["a"], caption=[""]), [0])
