"""TensorBoard's summaries of what is no curve: text, flags, histograms, images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

BINS = 30  # as many as TensorBoard itself draws


def text(tag: str, markdown: str) -> Any:
    """For the Text tab; Markdown."""
    from tensorboard.plugins.text.metadata import create_summary_metadata

    value = tf.make_tensor_proto([markdown.encode()], tf.string, [])
    return _of(tag, tensor=value.SerializeToString(), metadata=create_summary_metadata(tag, ""))


def hparams(flags: Mapping[str, Any]) -> Any:
    """For the HParams tab: the flags of a run, a column each."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    plain = {
        k: v if isinstance(v, bool | int | float | str) else " | ".join(map(str, v)) for k, v in flags.items()
    }
    return _same(hparams_pb(plain))


def histograms(arrays: Mapping[str, np.ndarray]) -> Any:
    """For the Histograms tab: one of the finite values of each array, by name."""
    summary = tf.compat.v1.Summary()
    for name, array in arrays.items():
        values = np.asarray(array).astype(np.float64).ravel()
        values = values[np.isfinite(values)]
        if not values.size:
            continue
        counts, edges = np.histogram(values, BINS)
        histogram = tf.compat.v1.HistogramProto(
            min=values.min(), max=values.max(), num=values.size, sum=values.sum(), sum_squares=values @ values
        )
        histogram.bucket_limit.extend(edges[1:])
        histogram.bucket.extend(counts)
        summary.value.add(tag=name, histo=histogram)
    return summary


def image(tag: str, png: bytes, size: tuple[int, int]) -> Any:
    """For the Images tab; `size` is width and height in pixels."""
    encoded = tf.compat.v1.Summary.Image(
        width=size[0], height=size[1], colorspace=3, encoded_image_string=png
    )
    return tf.compat.v1.Summary(value=[tf.compat.v1.Summary.Value(tag=tag, image=encoded)])


def _of(tag: str, tensor: bytes, metadata: Any) -> Any:
    summary = tf.compat.v1.Summary()
    value = summary.value.add(tag=tag)
    value.tensor.ParseFromString(tensor)
    value.metadata.ParseFromString(metadata.SerializeToString())
    return summary


def _same(summary: Any) -> Any:
    """TensorBoard's own protocol buffer as TensorFlow's."""
    return tf.compat.v1.Summary.FromString(summary.SerializeToString())


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, its cells as they are."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
