"""Resident, on the host, or streaming: which way a split is drawn, and its feed."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer.data.feed import Feed
from trainer.data.padding import varies
from trainer.data.pipelines import hosted, streaming
from trainer.data.resident import resident
from trainer.data.source import Split
from trainer.devices.memory import host_room, room
from trainer.devices.replicas import Share
from trainer.errors import UserError

TYPICAL = 512  # the length that stands for one that is not known

_Way = Callable[[Split, Share, int, int | None], Feed]
WAYS: dict[str, _Way] = {
    "resident": resident,
    "host": hosted,
    "streaming": streaming,
}


def residency(asked: str, split: Split, share: Share) -> str:
    """Which way to draw from a prepared split, one of `WAYS`; reads no examples.

    `resident`: its decoded bytes are at most a quarter of a device's memory: of the smallest GPU's, or of
    what is free on the host, divided by the replicas that live there. `host`: at most half of what is free
    on the host. `streaming`: all others, and what is in the host's memory as it is.

    Args:
      asked: value of --data_residency.
      split: prepared.
      share: whose replicas will hold the copies.

    Raises:
      UserError: what was asked for cannot be had.
    """
    elements = split.elements()
    if not isinstance(elements, np.ndarray) and elements.keeps_order:
        if asked in ("resident", "host"):
            raise UserError(
                f"--data_residency={asked}: {split.source.name} is a tf.data.Dataset, which is read as it "
                "goes, in its "
                "own order. Leave the flag out; dataset.cache() keeps what was read once."
            )
        return "streaming"
    need, memory, host = bytes_of(split), room(share.devices), host_room()
    limits = {"resident": memory, "host": host}
    if asked in limits and need > limits[asked]:
        raise UserError(
            f"--data_residency={asked}: {split.source.name} {split.name} takes {need / 2**20:,.0f} MiB and "
            f"{limits[asked] / 2**20:,.0f} MiB are to spare for it; use --data_residency=streaming."
        )
    if asked != "auto":
        return asked
    if need <= memory:
        return "resident"
    in_memory = isinstance(elements, np.ndarray) and split.decode is None and split.source.in_memory
    buckets = any(pad.bucket for pad in split.pads.values())
    return "host" if need <= host and (buckets or not in_memory) else "streaming"


def bytes_of(split: Split) -> int:
    """Bytes of the decoded split. What is not known is guessed: 64 for a string, `TYPICAL` for a length."""
    example = 0
    for name, spec in split.layout().items():
        for part in tf.nest.flatten(spec):
            size = part.dtype.size or 64
            if varies(part):
                length = split.pads[name].most or TYPICAL
                example += size * length * (part.shape[1:].num_elements() or 1)
            else:
                example += size * part.shape.num_elements()
    return example * split.examples


def order_of(where: str, split: Split) -> str:
    """Which of the two orders a way has: `resident`, any example anywhere; `streaming`, block after block."""
    in_a_row = where == "streaming" and not isinstance(split.elements(), np.ndarray)
    return "streaming" if in_a_row else "resident"


def with_order(order: str, split: Split, share: Share) -> str:
    """The way to draw that has this order, as `order_of` tells it.

    Raises:
      UserError: none can be had here.
    """
    if order == "streaming":
        return "streaming"
    where = residency("auto", split, share)
    return where if order_of(where, split) == order else residency("host", split, share)


def training_feed(where: str, split: Split, share: Share, batch: int, seed: int) -> Feed:
    """Endless batches in the order that `seed` gives.

    Args:
      where: one of `WAYS`, from `residency`.
      split: prepared.
      share: whose replicas take the batches.
      batch: rows of one `draw`, over all workers and replicas and accumulated batches.
      seed: the order's.
    """
    return WAYS[where](split, share, batch, seed)


def evaluation_feed(where: str, split: Split, share: Share, batch: int) -> Feed:
    """Every example once, in order, with `feed.MASK`; arguments as of `training_feed`."""
    return WAYS[where](split, share, batch, None)
