"""Files of weights that a stranger wrote: pickles, encoders with code beside them, headers that lie, URLs."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentdiff.checkpoint import store
from latentdiff.checkpoint.foreign import reading
from latentdiff.checkpoint.foreign.backbones import load_backbone_weights
from latentdiff.checkpoint.models import load_codec, load_denoiser
from latentdiff.conditioning.hf_text import HfText
from latentdiff.conditioning.hf_tokenizer import HfTokenizer
from latentdiff.conditioning.open_clip_text import OpenClipText
from latentdiff.metrics.features.inception import InceptionV3
from latentdiff.metrics.features.torchvision import TorchvisionFeatures
from latentdiff.metrics.lpips import Lpips


def nested(payload) -> dict:
    return {"state_dict": {"w": torch.zeros(1)}, "callbacks": [{"x": (payload,)}]}


def zipped(content: object, file: Path) -> None:
    torch.save(content, file)


def unzipped(content: object, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def bare(content: object, file: Path) -> None:
    file.write_bytes(pickle.dumps(content))


def in_a_tar(content: object, file: Path) -> None:
    """As torch before 0.1.10 saved."""
    with tarfile.open(file, "w") as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle.dumps(content)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


WRITERS = (zipped, unzipped, bare, in_a_tar)
CONTENTS: dict[str, Callable[[object], object]] = {
    "alone": lambda payload: payload,
    "nested": nested,
    "a key": lambda payload: {"state_dict": {"w": torch.zeros(1)}, (payload,): 1},
    "hyper_parameters": lambda payload: {"hyper_parameters": {"x": payload}, "state_dict": {}},
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("write", WRITERS)
def test_pickles(place, payload, stranger, content: str, write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = CONTENTS[content](payload(place.canary))
    for suffix in (".ckpt", ".pt", ".pth", ".bin"):
        path = place.folder / f"evil{suffix}"
        write(evil, path)
        with place.attempt(f"{content} {write.__name__} {suffix} as a first stage"):
            reading.read(path)
        with place.attempt(f"{content} {write.__name__} {suffix} as a codec"):
            load_codec(path)
        with place.attempt(f"{content} {write.__name__} {suffix} as a backbone"):
            load_backbone_weights(torch.nn.Linear(1, 1), str(path))
    with place.attempt(f"{content} {write.__name__} as VGG16 of LPIPS"):
        Lpips(weights=str(path))
    with place.attempt(f"{content} {write.__name__} as Inception"):
        InceptionV3(weights=str(path))
    with place.attempt(f"{content} {write.__name__} as a classifier of torchvision"):
        TorchvisionFeatures(model="mobilenet_v3_small", weights=str(path))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", lambda state, file: shutil.copy(path, file))
        checkpoint = stranger(place.folder / "checkpoint", "a: 1", train_state={})
    with place.attempt(f"{content} {write.__name__} as train_state.pt"):
        store.load_train_state(checkpoint)


def test_text_encoders(place, payload) -> None:
    """Pickled weights, and code beside the weights (``trust_remote_code``)."""
    about = {"embed_dim": 4, "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "head_width": 8, "patch_size": 4}}
    about["text_cfg"] = {"context_length": 8, "vocab_size": 49408, "width": 4, "heads": 1, "layers": 1}
    (place.folder / "clip").mkdir()
    (place.folder / "clip" / "latentdiff-hostile.json").write_text(json.dumps(about))
    for suffix in (".pt", ".bin"):
        zipped(nested(payload(place.canary)), place.folder / f"evil{suffix}")
        with place.attempt(f"open_clip {suffix}"):
            weights = str(place.folder / f"evil{suffix}")
            OpenClipText(model="latentdiff-hostile", weights=weights, model_config=str(place.folder / "clip"))
    folder = place.folder / "hf"
    folder.mkdir()
    code = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": ["code.Tokenizer", None]}
    (folder / "code.py").write_text(
        f"open({str(place.canary)!r}, 'w')\nclass Config: pass\nModel = Tokenizer = Config\n"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": code, "tokenizer_class": "Tokenizer"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "hostile", "auto_map": code}))
    with place.attempt("code beside a tokenizer"):
        HfTokenizer(model=str(folder), max_length=4)
    bert = {"model_type": "bert", "vocab_size": 5, "hidden_size": 4, "num_attention_heads": 1, "num_hidden_layers": 1}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with place.attempt("code beside a text encoder"):
        HfText(model=str(folder), max_length=4)
    (folder / "config.json").write_text(json.dumps(bert))
    zipped(nested(payload(place.canary)), folder / "pytorch_model.bin")
    with place.attempt("a pickled text encoder"):
        HfText(model=str(folder), max_length=4)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 10 << 30) + b"{}",
        struct.pack("<Q", (1 << 64) - 1) + b"{}",
        b"".join((struct.pack("<Q", 71), b'{"w":{"dtype":"F32","shape":[2684354560],"data_offsets":[0,10737418240]}}')),
        struct.pack("<Q", 2) + b"[]",
        b"",
    ],
)
def test_headers_of_safetensors(place, stranger, header: bytes) -> None:
    (place.folder / "evil.safetensors").write_bytes(header)
    with place.attempt("a header that lies about its size"):
        reading.read(place.folder / "evil.safetensors")
    checkpoint = stranger(place.folder / "checkpoint", "a: 1")
    size = (checkpoint / "ema.safetensors").stat().st_size
    (checkpoint / "ema.safetensors").write_bytes(header.ljust(size, b"\0")[:size])
    with place.attempt("the same in a checkpoint"):
        load_codec(checkpoint)
    with place.attempt("the same, not verified"):
        store.load_weights(checkpoint, "ema")


@pytest.mark.parametrize("protocol", ["http", "https", "s3", "gs", "hf", "file", "ftp", "memory"])
def test_checkpoints_behind_a_url(place, protocol: str) -> None:
    url = f"{protocol}://host/run/checkpoints/last"
    for name, load in {"resolve": store.resolve, "codec": load_codec, "denoiser": load_denoiser}.items():
        with place.attempt(f"{name} {url}", match="download"):
            load(url)
    assert list(place.folder.iterdir()) == [place.folder / "evil.pt"]
