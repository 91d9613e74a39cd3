"""Lightning's view of the data: loaders whose whole state is the number of batches seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytorch_lightning as pl
import torch
from torch import distributed

from latentdiff.config.errors import InputError
from latentdiff.data.conditions import Condition, check_fields, check_value
from latentdiff.data.image_reader import ImageReader
from latentdiff.data.labels import Labels
from latentdiff.data.plan import BatchPlan, SequentialPlan
from latentdiff.data.sample import check_captions, check_labels
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.sources import Source
from latentdiff.data.stream import BatchLoader, ReadCounts, ShardDataset
from latentdiff.data.transforms import SquareCrop
from latentdiff.data.worker import available_cores
from latentdiff.types import Batch


class DataModule(pl.LightningDataModule):
    """Batches of ``source`` as uint8 squares of ``image_size``; ``global_batch`` is shared equally by the ranks.

    Training is one pass over the batches ``start_batch`` .. ``max_batches`` - 1 of an endless plan, whose epochs are
    permutations, so the trainer runs with ``max_epochs=1``; to resume, set ``start_batch`` to the number of batches
    seen before ``fit``. ``max_batches`` None means one epoch. Validation goes through the samples in their order,
    ``val_batch`` (default ``global_batch``) at a time, all of them, main caption, centre crop, with attributes; the
    ranks' parts of its last batch differ by at most one sample and none is empty.
    ``num_workers`` None means a worker process per four CPU cores, at most four: on two cores a worker would only
    keep the training threads waiting for each other.

    Labels are read from the ``.cls``, or from the entry ``label_field`` of the ``.json``; one that is a name is looked
    up in ``class_names``. They are held against the number of ``classes`` at setup and again when read. ``conditions``
    make further fields of the batch (``conditions.FIELDS``), in validation the same in every run.

    The loaders split the data among the ranks themselves; Lightning's ``use_distributed_sampler`` does not touch them.
    """

    def __init__(
        self,
        *,
        source: Source,
        image_size: int,
        global_batch: int,
        seed: int,
        max_batches: int | None = None,
        val_batch: int | None = None,
        num_workers: int | None = None,
        random_crop: bool = False,
        flip: bool = False,
        require_captions: bool = False,
        require_labels: bool = False,
        classes: int | None = None,
        label_field: str | None = None,
        class_names: Sequence[str] | None = None,
        conditions: Mapping[str, Condition] | None = None,
        max_pixels: int = 64_000_000,
        max_broken: float = 0.01,
    ) -> None:
        super().__init__()
        self.source = source
        self.image_size = image_size
        self.global_batch = global_batch
        self.seed = seed
        self.max_batches = max_batches
        self.val_batch = global_batch if val_batch is None else val_batch
        self.num_workers = min(4, available_cores() // 4) if num_workers is None else num_workers
        self.random_crop = random_crop
        self.flip = flip
        self.require_captions = require_captions
        self.require_labels = require_labels
        self.classes = classes
        self.label_field = label_field
        self.class_names = class_names
        self.conditions = conditions
        self.max_pixels = max_pixels
        self.max_broken = max_broken
        self.start_batch = 0
        """Batches seen before; the training loader begins with this one."""
        self._sets: tuple[ShardSet, ShardSet] | None = None
        self._train: ShardDataset | None = None

    def prepare_data(self) -> None:
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Opens the sets. Raises InputError for faulty shards, for missing captions or labels that are required, for
        unknown classes, and for conditions that lack their files or do not fit the images."""
        if self._sets is not None:
            return
        sets = self.source.open()
        check_fields(self.conditions or {})
        for shards in sets:
            if self.require_captions:
                check_captions(shards)
            check_labels(shards, self._labels())
            for condition in (self.conditions or {}).values():
                condition.check(shards)
            self._try_conditions(shards)
        self._sets = sets

    @property
    def train_set(self) -> ShardSet:
        """The training samples, opened on first use."""
        return self._opened()[0]

    @property
    def val_set(self) -> ShardSet:
        """The validation samples, opened on first use."""
        return self._opened()[1]

    def fingerprint(self) -> str:
        """Hex digest of the training samples and the image size; call ``prepare_data`` first."""
        return hashlib.sha256(f"{self.train_set.fingerprint()} {self.image_size}".encode()).hexdigest()

    def train_dataloader(self) -> BatchLoader:
        rank, ranks = self._rank_and_ranks()
        if self.global_batch % ranks:
            raise InputError(
                f"global_batch={self.global_batch} cannot be shared equally by {ranks} processes; change it"
            )
        plan = BatchPlan(len(self.train_set), self.global_batch, self.seed)
        stop = plan.batches_per_epoch if self.max_batches is None else self.max_batches
        self._train = ShardDataset(
            self.train_set,
            plan=plan,
            reader=self._reader(
                self.train_set,
                transform=SquareCrop(size=self.image_size, random_crop=self.random_crop, flip=self.flip),
                conditions=self.conditions,
            ),
            rank=rank,
            ranks=ranks,
            max_broken=self.max_broken,
        )
        return self._loader(self._train, range(self.start_batch, max(stop, self.start_batch)))

    def val_dataloader(self) -> BatchLoader:
        rank, ranks = self._rank_and_ranks()
        if len(self.val_set) < ranks:
            raise InputError(f"{len(self.val_set)} validation samples are too few for {ranks} processes; add some")
        plan = SequentialPlan(len(self.val_set), max(self.val_batch, ranks), ranks)
        dataset = self._fixed(self.val_set, plan, rank, ranks)
        return self._loader(dataset, range(plan.num_batches))

    def preview(self, count: int) -> Batch:
        """The first ``count`` validation samples, for pictures: the same on every rank and in every run."""
        count = min(count, len(self.val_set))
        return self._fixed(self.val_set, SequentialPlan(len(self.val_set), count, 1), 0, 1)[0]

    def statistics_batches(self, count: int) -> Iterator[Batch]:
        """This rank's share of ``count`` training samples spread over the set, without augmentation or conditions."""
        rank, ranks = self._rank_and_ranks()
        count = min(count, len(self.train_set))
        chosen = self.train_set.select(np.linspace(0, len(self.train_set) - 1, count).astype(np.int64))
        plan = SequentialPlan(count, max(min(count, self.val_batch), ranks), ranks)
        dataset = self._fixed(chosen, plan, rank, ranks, with_conditions=False)
        return (dataset[number] for number in range(plan.num_batches))

    def counts(self) -> ReadCounts:
        """What this rank's training loader has read so far."""
        return ReadCounts(0, 0, len(self.train_set)) if self._train is None else self._train.counts

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    def _labels(self) -> Labels:
        return Labels(
            classes=self.classes, entry=self.label_field, names=self.class_names, required=self.require_labels
        )

    def _try_conditions(self, shards: ShardSet) -> None:
        """Makes the fields of the first sample, before any work."""
        if self.conditions:
            batch = self._fixed(shards, SequentialPlan(len(shards), 1), 0, 1)[0]
            for name in self.conditions:
                check_value(name, getattr(batch, name)[0], self.image_size)

    def _fixed(
        self, shards: ShardSet, plan: SequentialPlan, rank: int, ranks: int, with_conditions: bool = True
    ) -> ShardDataset:
        """Samples as evaluation sees them: main caption, centre crop, with attributes."""
        reader = self._reader(
            shards,
            transform=SquareCrop(size=self.image_size),
            draw=False,
            conditions=self.conditions if with_conditions else None,
        )
        return ShardDataset(shards, plan=plan, reader=reader, rank=rank, ranks=ranks, max_broken=self.max_broken)

    def _reader(
        self, shards: ShardSet, *, transform: SquareCrop, conditions: Mapping[str, Condition] | None, draw: bool = True
    ) -> ImageReader:
        return ImageReader(
            shards,
            transform=transform,
            seed=self.seed,
            draw=draw,
            with_attributes=not draw,
            require_captions=self.require_captions,
            labels=self._labels(),
            conditions=conditions,
            max_pixels=self.max_pixels,
        )

    def _opened(self) -> tuple[ShardSet, ShardSet]:
        self.setup()
        assert self._sets is not None
        return self._sets

    def _loader(self, dataset: ShardDataset, numbers: range) -> BatchLoader:
        return BatchLoader(dataset, numbers, num_workers=self.num_workers, pin_memory=torch.cuda.is_available())

    def _rank_and_ranks(self) -> tuple[int, int]:
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
