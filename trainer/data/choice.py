"""Resident or streaming: which way a split is drawn, and its feed."""

from collections.abc import Callable

import tensorflow as tf

from trainer.data.feed import Feed
from trainer.data.resident import resident
from trainer.data.source import Split
from trainer.data.streaming import streaming
from trainer.devices.memory import room
from trainer.devices.strategy import Share
from trainer.errors import UserError

_Way = Callable[[Split, Share, int, int | None], Feed]
WAYS: dict[str, _Way] = {
    "resident": resident,
    "streaming": streaming,
}


def residency(asked: str, split: Split, share: Share) -> str:
    """Which way to draw from a prepared split, `resident` or `streaming`; reads no examples.

    A split may be resident if its decoded bytes are at most a quarter of a device's memory: of the
    smallest GPU's, or of what is free on the host, divided by the replicas that live there.

    Args:
      asked: value of --data_residency.
      split: prepared.
      share: whose replicas will hold the copies.

    Raises:
      UserError: what was asked for cannot be had.
    """
    split.source.check()
    specs = tf.nest.flatten(split.spec())
    # The length of a string is not known; 64 bytes stand for it.
    example = sum(spec.shape.num_elements() * (spec.dtype.size or 64) for spec in specs)
    need, there = example * split.examples, room(share.devices)
    if asked == "resident" and need > there:
        raise UserError(
            f"--data_residency=resident: {split.source.name} {split.name} takes {need / 2**20:,.0f} MiB and "
            f"{there / 2**20:,.0f} MiB are to spare for it; use --data_residency=streaming."
        )
    return "resident" if asked != "streaming" and need <= there else "streaming"


def training_feed(way: str, split: Split, share: Share, batch: int, seed: int) -> Feed:
    """Endless batches in the order that `seed` gives.

    Args:
      way: `resident` or `streaming`, from `residency`.
      split: prepared.
      share: whose replicas take the batches.
      batch: rows of one `draw`, over all workers and replicas and accumulated batches.
      seed: the order's.
    """
    return WAYS[way](split, share, batch, seed)


def evaluation_feed(way: str, split: Split, share: Share, batch: int) -> Feed:
    """Every example once, in order, with `feed.MASK`; arguments as of `training_feed`."""
    return WAYS[way](split, share, batch, None)
