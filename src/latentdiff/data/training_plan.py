"""The plan that a training set is read by."""

from __future__ import annotations

import logging

import numpy as np

from latentdiff.data.buckets import BucketPlan
from latentdiff.data.mixing import MixedPlan, Mixture
from latentdiff.data.plan import BatchPlan
from latentdiff.data.shard_set import ShardSet

_log = logging.getLogger(__name__)


def training_plan(
    shards: ShardSet,
    global_batch: int,
    seed: int,
    *,
    window: int,
    mixture: Mixture | None = None,
    bucket_of: np.ndarray | None = None,
) -> BatchPlan | MixedPlan | BucketPlan:
    """A mixture's, or that of buckets (int (samples,)), or else each sample once per epoch."""
    given = {"shard_of": shards.shard_of(), "window": window}
    if mixture is not None:
        return MixedPlan(mixture, global_batch, seed, **given)
    if bucket_of is None:
        return BatchPlan(len(shards), global_batch, seed, **given)
    plan = BucketPlan(bucket_of, global_batch, seed, **given)
    _log.info("buckets: %d of %d samples are left over in each epoch", plan.left_out, len(shards))
    return plan
