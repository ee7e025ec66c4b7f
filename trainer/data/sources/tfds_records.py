"""Records as TFDS wrote them: had by number out of array_record files, and decoded some at a time."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from trainer.data.padding import signature


class RecordFiles:
    """The records of array_record files, numbered through all of them.

    Args:
      lengths: `{path: records}`, in the order in which they are numbered.
    """

    def __init__(self, lengths: Mapping[str, int]) -> None:
        self._paths = list(lengths)
        self._ends = np.cumsum(list(lengths.values()))
        starts = [0, *self._ends.tolist()]
        self.firsts = dict(zip(self._paths, starts, strict=False))
        self._readers: dict[int, Any] = {}

    def read(self, numbers: tf.Tensor) -> tf.Tensor:
        """The records of these numbers: strings, of the shape of `numbers`. Traced."""
        records = tf.numpy_function(self._read, [numbers], tf.string, stateful=False)
        return tf.ensure_shape(records, numbers.shape)

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        found = np.empty(len(numbers), object)
        files = np.searchsorted(self._ends, numbers, "right")
        for file in np.unique(files).tolist():
            places = np.flatnonzero(files == file)
            positions = numbers[places] - self.firsts[self._paths[file]]
            # Not by the data source of the package, which starts threads for every call.
            for place, record in zip(places, self._reader(file).read(positions.tolist()), strict=True):
                found[place] = record
        return found

    def _reader(self, file: int) -> Any:
        if file not in self._readers:
            from array_record.python import array_record_module

            options = "readahead_buffer_size:0"  # there is no next record to be read ahead
            self._readers[file] = array_record_module.ArrayRecordReader(self._paths[file], options=options)
        return self._readers[file]


def batch_decoded(features: tfds.features.FeaturesDict, records: tf.Tensor, spec: Any) -> dict[str, Any]:
    """Serialized records [group] as TFDS decodes them: [group, ...], a RaggedTensor where lengths differ.

    Where every feature has one shape the records are parsed together, which takes half the time; what is
    decoded then (images mostly) is decoded one by one.
    """
    plain = features.tf_example_spec
    if all(isinstance(part, tf.io.FixedLenFeature) for part in plain.values()) and _flat(features):
        parsed = tf.io.parse_example(records, plain)
        return {name: _decoded(features[name], value, spec[name]) for name, value in parsed.items()}
    decode = features.deserialize_example
    return tf.map_fn(decode, records, fn_output_signature=signature(spec), parallel_iterations=1)


def _flat(features: tfds.features.FeaturesDict) -> bool:
    """Whether no feature is made of others, and each is stored under its own name."""
    kinds = (tfds.features.Image, tfds.features.Scalar, tfds.features.ClassLabel, tfds.features.Text)
    return all(type(feature) in (*kinds, tfds.features.Tensor) for feature in features.values())


def _decoded(feature: Any, values: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    """One feature of a group, as stored, decoded."""
    if values.dtype == spec.dtype and values.shape[1:] == spec.shape:
        if type(feature) is not tfds.features.Image:
            return values
    elif values.shape[1:] == spec.shape and type(feature) is not tfds.features.Image:
        return tf.cast(values, spec.dtype)
    return tf.map_fn(
        feature.decode_example, values, fn_output_signature=signature(spec), parallel_iterations=1
    )
