"""Samples to what a cache keeps of them: read by workers, encoded in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from latentdiff.config.errors import InputError
from latentdiff.data.cached import FLIPPED, KEPT, LATENT, dump_array, dump_text, text_member
from latentdiff.data.decode import BrokenSampleError
from latentdiff.data.sample import captions_of, parsed_json
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.stream import Reader
from latentdiff.data.worker import outlive_signals
from latentdiff.models.autoencoder.codec import LatentCodec
from latentdiff.types import Batch, Conditioning


@dataclass(frozen=True)
class Found:
    """One sample, read."""

    key: str
    """Within its shard."""
    image: Tensor
    """uint8 (3, H, W)."""
    captions: list[str]
    files: dict[str, bytes]
    """Those that the cache keeps."""


class ImagesAndTexts(Dataset):
    """Each sample of a set read; what is wrong with it, as a string, where it cannot be used."""

    def __init__(self, shards: ShardSet, reader: Reader) -> None:
        self.shards, self.reader = shards, reader

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Found | str | InputError:
        try:
            row = self.reader.read(0, index)
            found = {extension: self.shards.read(index, extension) for extension in KEPT}
            files = {extension: data for extension, data in found.items() if data}
            captions = captions_of(files.get("txt"), parsed_json(files.get("json")))
            return Found(self._key(index), row.image, captions, files)
        except BrokenSampleError as error:
            return f"{self.shards.where(index)}: {error}"
        except InputError as error:
            return error

    def _key(self, index: int) -> str:
        table = self.shards.table
        name = table.names[table.shard(int(self.shards.rows[index]))]
        return self.shards.key(index).removeprefix(f"{name}/")


def batches(samples: ImagesAndTexts, size: int, workers: int) -> Iterator[list[Found | str]]:
    """The samples in their order. Raises the InputError of one."""
    for found in DataLoader(
        samples, batch_size=size, collate_fn=list, num_workers=workers, worker_init_fn=outlive_signals
    ):
        for one in found:
            if isinstance(one, InputError):
                raise one
        yield found


class CacheEncoder:
    """Images and captions -> members of a cache's samples, in float32 arithmetic.

    ``text``: the frozen text encoder, None for none. ``dtype``: of what is stored. ``captions``: most of a sample.
    """

    def __init__(
        self,
        codec: LatentCodec,
        text: nn.Module | None,
        *,
        device: torch.device,
        dtype: str,
        mirrored: bool,
        captions: int | None,
    ) -> None:
        self.codec, self.text, self.device = codec, text, device
        self.dtype = getattr(torch, dtype)
        self.mirrored, self.captions = mirrored, captions

    @torch.no_grad()
    def __call__(self, found: Sequence[Found]) -> Iterable[dict]:
        """Samples for ``write_shard``."""
        images = torch.stack([one.image for one in found]).to(self.device)
        made: list[dict] = [{"__key__": one.key, **one.files} for one in found]
        members = {LATENT: images} | ({FLIPPED: images.flip(-1)} if self.mirrored else {})
        for member, pixels in members.items():
            latents = torch.stack(self.codec.moments(pixels.float() / 127.5 - 1.0), dim=1).to(self.dtype)
            if not bool(latents.isfinite().all()):
                raise InputError(f"latents of {found[0].key} ... {found[-1].key} do not fit into --dtype {self.dtype}")
            for sample, latent in zip(made, latents):
                sample[member] = dump_array(latent)
        if self.text is not None:
            self._add_texts(made, [one.captions[: self.captions] for one in found])
        return made

    @torch.no_grad()
    def empty_text(self) -> dict[str, Tensor] | None:
        """The encoded empty caption."""
        return None if self.text is None else next(self._encoded([""]))

    def _add_texts(self, made: list[dict], captions: list[list[str]]) -> None:
        """A batch of the first captions, one of the second ..."""
        for number in range(max(map(len, captions))):
            having = [i for i, of_one in enumerate(captions) if len(of_one) > number]
            encoded = self._encoded([captions[i][number] for i in having])
            for i, text in zip(having, encoded):
                made[i][text_member(number)] = dump_text(text)

    def _encoded(self, captions: list[str]) -> Iterator[dict[str, Tensor]]:
        cond: Conditioning = self.text(Batch(keys=captions, caption=captions))
        parts = {f.name: value for f in fields(cond) if (value := getattr(cond, f.name)) is not None}
        for row in range(len(captions)):
            each = {name: value[row] for name, value in parts.items()}
            yield {name: v if v.dtype is torch.bool else v.to(self.dtype) for name, v in each.items()}
