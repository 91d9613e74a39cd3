"""Lightning's view of the data: loaders whose whole state is the number of batches seen."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pytorch_lightning as pl
import torch
from torch import distributed
from torch.utils.data import Dataset

from latentdiff.config.errors import InputError
from latentdiff.data.buckets import AspectBuckets, BucketCrops, assign, checked_sizes
from latentdiff.data.conditions import Condition, check_fields, check_value
from latentdiff.data.filters import known_sizes
from latentdiff.data.image_reader import ImageReader
from latentdiff.data.labels import Labels
from latentdiff.data.plan import SHUFFLE, Plan, SequentialPlan
from latentdiff.data.ranges import SampleRanges, spread
from latentdiff.data.resampled import ResampledDataset, ResampledShards
from latentdiff.data.sample import check_captions, check_labels
from latentdiff.data.shard_set import ShardSet
from latentdiff.data.sources import Source
from latentdiff.data.stream import BatchLoader, ReadCounts, Reader, Readers, ShardDataset, check_share
from latentdiff.data.training_plan import training_plan
from latentdiff.data.transforms import CoverCrop, Crops
from latentdiff.data.worker import available_cores
from latentdiff.types import Batch

_log = logging.getLogger(__name__)


class DataModule(pl.LightningDataModule):
    """Batches of ``source`` as uint8 squares of ``image_size``; ``global_batch`` is shared equally by the ranks.

    Training is one pass over the batches ``start_batch`` .. ``max_batches`` - 1 (None: of one epoch) of an endless
    plan, so the trainer runs with ``max_epochs=1``; to resume, set ``start_batch`` to the number of batches seen before
    ``fit``. Validation goes through all samples in their order, ``val_batch`` (default ``global_batch``) at a time,
    main caption, centre crop, with attributes; the ranks' parts of its last batch differ by at most one sample and none
    is empty. An epoch's order is shuffled within a window of ``shuffle`` samples (``plan.EpochOrder``). With
    ``buckets``, pairs of height and width, training images are cut to that of the nearest aspect ratio, and each batch
    is of one bucket; all else stays squares. With ``resampled`` training comes from there, and the training set of
    ``source`` serves for checks and statistics alone. ``readers`` make samples otherwise than from images.
    ``num_workers`` None means a worker process per four CPU cores, at most four: on two cores a worker would only keep
    the training threads waiting for each other.

    Labels are read from the ``.cls``, or from the entry ``label_field`` of the ``.json``; one that is a name is looked
    up in ``class_names``. They are held against the number of ``classes`` at setup and again when read. ``conditions``
    make further fields of the batch (``conditions.FIELDS``). For ``background`` see ``ImageReader``.

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
        background: Sequence[int] = (255, 255, 255),
        max_broken: float = 0.01,
        shuffle: int = SHUFFLE,
        buckets: Sequence[Sequence[int]] | AspectBuckets | None = None,
        resampled: ResampledShards | None = None,
        readers: Readers | None = None,
    ) -> None:
        if shuffle < 1:
            raise InputError(f"data.shuffle: expected a window of at least 1 sample, got {shuffle}")
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
        self.background = background
        self.max_broken = check_share(max_broken)
        self.shuffle = shuffle
        self.buckets = None if buckets is None else checked_sizes(buckets)
        self.resampled = resampled
        self.readers = readers
        self.start_batch = 0
        """Batches seen before; the training loader begins with this one."""
        self._sets: tuple[ShardSet, ShardSet] | None = None
        self._bucket_of: np.ndarray | None = None
        self._train: ShardDataset | None = None

    def prepare_data(self) -> None:
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Opens the sets and fills the buckets. Raises InputError for faulty shards and too many samples known to be
        broken, for missing captions or labels that are required, for unknown classes, for conditions that lack their
        files or do not fit the images, and for buckets without the sizes of the images."""
        shards = self.train_set
        if self.buckets is None or self._bucket_of is not None:
            return
        if self.resampled is not None or self.readers is not None or self.source.mixture(shards) is not None:
            raise InputError("data.buckets cannot be used with data.weights, resampled shards or cached latents")
        usable = ~shards.broken()
        sizes = known_sizes(shards, "data.buckets")
        self._bucket_of = assign(sizes, self.buckets, self.global_batch, usable=usable)
        for bucket in np.unique(self._bucket_of):
            if len(members := np.flatnonzero((self._bucket_of == bucket) & usable)):
                self._try(shards.select(members), CoverCrop(size=self.buckets[bucket]))

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
        samples = self.train_set.fingerprint() if self.resampled is None else " ".join(self.resampled.paths())
        return hashlib.sha256(f"{samples} {self.image_size}".encode()).hexdigest()

    def train_dataloader(self) -> BatchLoader:
        self.setup()
        rank, ranks = self._rank_and_ranks()
        if self.global_batch % ranks:
            shared = f"global_batch={self.global_batch} cannot be shared equally by {ranks} processes"
            raise InputError(f"{shared}; change it")
        reader = self._reader(self.train_set, transform=self._crops(), conditions=self.conditions)
        given = {"reader": reader, "rank": rank, "ranks": ranks, "max_broken": self.max_broken}
        if self.resampled is None:
            mixture = self.source.mixture(self.train_set)
            options = {"window": self.shuffle, "mixture": mixture, "bucket_of": self._bucket_of}
            plan = training_plan(self.train_set, self.global_batch, self.seed, **options)
            dataset = self._train = ShardDataset(self.train_set, plan=plan, **given)
            stop = plan.batches_per_epoch if self.max_batches is None else self.max_batches
        elif self.max_batches is None:
            raise InputError("max_batches: resampled shards have no epochs; say how many batches to train on")
        else:
            options = {"global_batch": self.global_batch, "seed": self.seed, "start": self.start_batch}
            dataset, stop = ResampledDataset(self.resampled, **options, **given), self.max_batches
        return self._loader(dataset, range(self.start_batch, max(stop, self.start_batch)))

    def val_dataloader(self) -> BatchLoader:
        rank, ranks = self._rank_and_ranks()
        if len(self.val_set) < ranks:
            raise InputError(f"{len(self.val_set)} validation samples are too few for {ranks} processes; add some")
        plan = SequentialPlan(len(self.val_set), max(self.val_batch, ranks), ranks)
        dataset = self._fixed(self.val_set, plan, rank, ranks)
        return self._loader(dataset, range(plan.num_batches))

    def preview(self, count: int) -> Batch:
        """The first ``count`` validation samples, for pictures: the same on every rank and in every run."""
        return self.ranges_of(self.val_set, with_conditions=True)(range(min(count, len(self.val_set))))

    def fixed_reader(self, shards: ShardSet) -> Reader:
        """Of samples as evaluation sees them, without conditions."""
        return self._reader(shards, transform=CoverCrop(size=self.image_size), conditions=None, draw=False)

    def statistics_batches(self, count: int) -> Iterator[Batch]:
        """This rank's share of ``count`` training samples spread over the set, without augmentation or conditions."""
        rank, ranks = self._rank_and_ranks()
        chosen = spread(self.train_set, count)
        plan = SequentialPlan(len(chosen), max(min(len(chosen), self.val_batch), ranks), ranks)
        dataset = self._fixed(chosen, plan, rank, ranks, with_conditions=False)
        return map(dataset.__getitem__, range(plan.num_batches))

    def ranges_of(self, shards: ShardSet, *, with_conditions: bool = False) -> SampleRanges:
        """The samples of a set by their indices, as evaluation sees them: whichever rank asks."""
        fixed = partial(self._fixed, with_conditions=with_conditions)
        return SampleRanges(shards, fixed, num_workers=self.num_workers)

    def training_ranges(self, count: int) -> SampleRanges:
        """Those of ``statistics_batches`` likewise, fewer where there are not as many."""
        return self.ranges_of(spread(self.train_set, count))

    def counts(self) -> ReadCounts:
        """What the training loaders of all ranks have read since the start or resumption; to be called on all ranks."""
        if self._train is None:
            return ReadCounts(0, 0, len(self.train_set))
        status = self._train.status
        if distributed.is_available() and distributed.is_initialized():
            status = status.to("cuda" if distributed.get_backend() == "nccl" else "cpu", copy=True)
            distributed.all_reduce(status, distributed.ReduceOp.MAX)
        return ReadCounts.of(status)

    def teardown(self, stage: str | None = None) -> None:
        """Says at the end of training how many samples could not be used."""
        if stage == "fit" and self._train is not None:
            counts = self.counts()
            if counts.skipped and self._rank_and_ranks()[0] == 0:
                said = "%d of %d training samples were skipped, %d read"
                _log.warning(said, counts.skipped, counts.indexed, counts.seen)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    def _labels(self) -> Labels:
        given = {"classes": self.classes, "entry": self.label_field, "names": self.class_names}
        return Labels(required=self.require_labels, **given)

    def _crops(self) -> Crops:
        """How training images are cut."""
        options = {"random_crop": self.random_crop, "flip": self.flip}
        if self.buckets is None or self._bucket_of is None:
            return CoverCrop(size=self.image_size, **options)
        return BucketCrops([CoverCrop(size=size, **options) for size in self.buckets], self._bucket_of)

    def _try(self, shards: ShardSet, crop: CoverCrop) -> None:
        """Makes the fields of the first sample, before any work."""
        dataset = self._fixed(shards, SequentialPlan(len(shards), 1), crop=crop)
        for name in self.conditions or {}:
            check_value(name, getattr(dataset[0], name)[0], *crop.size)

    def _fixed(
        self,
        shards: ShardSet,
        plan: Plan,
        rank: int = 0,
        ranks: int = 1,
        *,
        with_conditions: bool = True,
        crop: CoverCrop | None = None,
    ) -> ShardDataset:
        """Samples as evaluation sees them: main caption, centre crop, with attributes."""
        options = {"conditions": self.conditions if with_conditions else None, "draw": False}
        reader = self._reader(shards, transform=crop or CoverCrop(size=self.image_size), **options)
        return ShardDataset(shards, plan=plan, reader=reader, rank=rank, ranks=ranks, max_broken=self.max_broken)

    def _reader(
        self, shards: ShardSet, *, transform: Crops, conditions: Mapping[str, Condition] | None, draw: bool = True
    ) -> Reader:
        if self.readers is not None:
            options = {"flip": self.flip and draw, "labels": self._labels(), "require_captions": self.require_captions}
            return self.readers(shards, draw=draw, seed=self.seed, **options)
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
            background=self.background,
        )

    def _opened(self) -> tuple[ShardSet, ShardSet]:
        if self._sets is None:
            sets = self.source.open()
            check_fields(self.conditions or {})
            for shards in sets:
                self._check(shards)
            self._sets = sets
        return self._sets

    def _check(self, shards: ShardSet) -> None:
        if self.require_captions:
            check_captions(shards)
        check_labels(shards, self._labels())
        for condition in (self.conditions or {}).values():
            condition.check(shards)
        if self.readers is not None:
            self.readers.check(shards)
        self._try(shards, CoverCrop(size=self.image_size))

    def _loader(self, dataset: Dataset, numbers: range) -> BatchLoader:
        return BatchLoader(dataset, numbers, num_workers=self.num_workers, pin_memory=torch.cuda.is_available())

    def _rank_and_ranks(self) -> tuple[int, int]:
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
