"""``latentdiff cache``: the latents and the encoded text of a training's data, once, for ``data=cached``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from latentdiff.app.composed import composed
from latentdiff.config.errors import InputError

DTYPES = ("float32", "float16")


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds ``cache``."""
    cache = verbs.add_parser(
        "cache",
        help="latents and encoded text of a data set, once; train.py then takes them with data=cached",
        description="The settings are those of the training: they say which images at which size, which first stage "
        "and which text encoder. data.flip=true encodes mirrored copies too. The same command goes on where an "
        "interrupted one stopped; under torchrun the processes share the work.",
    )
    cache.add_argument("dest", metavar="DEST", help="new folder for the cache")
    cache.add_argument(
        "settings", nargs="+", metavar="KEY=VALUE", help="experiment=NAME data=... first_stage.checkpoint=PATH ..."
    )
    cache.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help=f"of what is stored (default: {DTYPES[0]})")
    cache.add_argument("--captions", type=int, metavar="N", help="encode at most N captions of a sample (default: all)")
    cache.add_argument("--batch", type=int, default=32, metavar="N", help="images encoded at a time (default: 32)")
    cache.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from latentdiff.app.data.cache_work import make_cache

    for name in ("captions", "batch"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise InputError(f"--{name}: expected at least 1, got {value}")
    cfg = composed("train", arguments.settings)
    options = {"dtype": arguments.dtype, "captions": arguments.captions, "batch": arguments.batch}
    try:
        manifest = make_cache(cfg, Path(arguments.dest), **options)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on behind the last complete shards", file=sys.stderr)
        raise
    if manifest is None:
        return
    size = sum(path.stat().st_size for path in Path(arguments.dest).rglob("*.tar")) / 2**20
    print(f"{arguments.dest}: {size:.1f} MiB, {manifest.dtype} latents{' and text' if manifest.text else ''}")
    if manifest.left_out:
        print(f"{manifest.left_out} samples could not be used and are left out", file=sys.stderr)
    print(f"train with the same settings but data=cached data.train={arguments.dest} data.size={manifest.image_size}")
