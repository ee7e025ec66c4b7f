"""Folders of images: `train/CLASS/*.jpg`, or `CLASS/*.jpg` of the split train."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.fingerprints import of_files
from trainer.data.source import parts
from trainer.data.sources.arrays import ClassNames
from trainer.data.sources.classes import check_spelling
from trainer.data.sources.image_files import find_images, read_heads
from trainer.errors import UserError, listing


@dataclass(frozen=True)
class Images:
    """Images uint8 [height, width, channels] and class numbers int64; an element is the number of a file.

    Attributes:
      name: value of --dataset.
      folder: where they lie.
      files: by split, in the order of their names.
      classes: names of the folders, sorted; an image's label is the place of its own.
      side: of an image as it comes out, in pixels (height, width).
      crop: keep the proportions and cut off what is too much; else the image is squeezed.
      channels: 3 for colours, 1 for grey.
      notes: sentences for the log.
    """

    name: str
    folder: Path
    files: Mapping[str, Sequence[Path]]
    classes: tuple[str, ...]
    side: tuple[int, int]
    crop: bool = False
    channels: int = 3
    notes: tuple[str, ...] = ()
    prepared: bool = field(default=True, init=False)
    in_memory: bool = field(default=False, init=False)

    @property
    def full_name(self) -> str:
        """Its name."""
        return self.name

    @property
    def remedy(self) -> str:
        """What to do where a file is damaged."""
        return "Mend or remove the file, or give --bad_examples=skip."

    @property
    def features(self) -> dict[str, Any]:
        """As `spec`, with the names of the classes."""
        return {**self.spec(), "label": ClassNames(self.classes)}

    def prepare(self) -> None:
        """Nothing: the files are there."""

    def fingerprint(self) -> str:
        """Of names, sizes and ends of the files."""
        return of_files([file for files in self.files.values() for file in files], self.folder)

    def sizes(self) -> dict[str, int]:
        """`{split: images}`."""
        return {split: len(files) for split, files in self.files.items()}

    def spec(self) -> dict[str, tf.TensorSpec]:
        """`image` uint8 [height, width, channels], `label` int64 []."""
        return {
            "image": tf.TensorSpec([*self.side, self.channels], tf.uint8),
            "label": tf.TensorSpec([], tf.int64),
        }

    def elements(self, split: str) -> np.ndarray:
        """Numbers of files, all splits in a row."""
        sizes = self.sizes()
        firsts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
        return np.concatenate([firsts[name] + np.arange(a, b) for name, a, b in parts(split, sizes)])

    def example(self, element: tf.Tensor) -> dict[str, Any]:
        """The image of this number, decoded, and its label."""
        with tf.init_scope(), tf.device("CPU:0"):  # captured, not written into the graph
            paths, labels = tf.constant(self._paths), tf.constant(self._labels)
        data = tf.io.read_file(paths[element])
        image = tf.io.decode_image(data, channels=self.channels, expand_animations=False)
        image.set_shape([None, None, self.channels])
        return {"image": fitted(image, self.side, self.crop), "label": labels[element]}

    def examples(self, elements: tf.Tensor) -> dict[str, Any]:
        """The images of these numbers."""
        return tf.map_fn(self.example, elements, fn_output_signature=self.spec(), parallel_iterations=1)

    def file(self, number: int) -> str:
        """The path of an example."""
        return self._paths[number]

    def arrays(self, split: str) -> None:
        """None: they are files."""

    @functools.cached_property
    def _paths(self) -> list[str]:
        return [str(file) for files in self.files.values() for file in files]

    @functools.cached_property
    def _labels(self) -> np.ndarray:
        number = {name: i for i, name in enumerate(self.classes)}
        return np.array([number[f.parent.name] for files in self.files.values() for f in files], np.int64)


def fitted(image: tf.Tensor, side: tuple[int, int], crop: bool) -> tf.Tensor:
    """`image` [h, w, c] as uint8 [*side, c], bilinear, as Keras's `image_dataset_from_directory`.

    Args:
      image: uint8.
      side: height and width to come out.
      crop: cut the middle of these proportions out first.
    """
    if crop:
        height, width = tf.unstack(tf.shape(image)[:2])
        rows = tf.minimum(height, tf.maximum(width * side[0] // side[1], 1))
        columns = tf.minimum(width, tf.maximum(height * side[1] // side[0], 1))
        top, left = (height - rows) // 2, (width - columns) // 2
        image = image[top : top + rows, left : left + columns]
    shape = tf.shape(image)
    same = tf.logical_and(shape[0] == side[0], shape[1] == side[1])

    def resized() -> tf.Tensor:
        return tf.cast(tf.round(tf.image.resize(image, side)), tf.uint8)

    return tf.ensure_shape(tf.cond(same, lambda: image, resized), [*side, image.shape[-1]])


def open_images(
    name: str, folder: Path, size: Any = None, crop: bool = False, channels: int = 3, bad: str = "refuse"
) -> Images:
    """The images of a folder, their heads read.

    Args:
      name: value of --dataset.
      folder: holds `SPLIT/CLASS/FILE`, or `CLASS/FILE` of the split train.
      size: side of the images, or (height, width); may be left out where all have one size already.
      crop: keep the proportions and cut the middle out; by default an image is squeezed.
      channels: 3 for colours, 1 for grey.
      bad: value of --bad_examples.

    Raises:
      UserError: no image, a file that is broken, sizes that differ where none is asked for.
    """
    flag = f"--dataset={name}"
    if channels not in (1, 3):
        raise UserError(f"{flag}: channels={channels!r}: give 3 for colours or 1 for grey.")
    files, left = find_images(flag, folder)
    classes = tuple(sorted({file.parent.name for group in files.values() for file in group}))
    check_spelling(flag, "folders", classes)
    files, found, notes = read_heads(flag, folder, files, channels, bad)
    notes += [*left, *_unlearnt(files)]
    side = _side(flag, size, found)
    if len(found) > 1 or side not in found:
        smallest, largest = min(found), max(found)
        notes.append(
            f"Images of {'x'.join(map(str, smallest))} to {'x'.join(map(str, largest))} (height x width) are "
            f"{'cropped' if crop else 'squeezed'} to {side[0]}x{side[1]}, bilinear."
        )
    numbered = (f"{number} {each}" for number, each in enumerate(classes))
    notes.append(f"label is one of {len(classes)} classes: {listing(numbered, 40)}.")
    return Images(name, folder, files, classes, side, crop, channels, tuple(notes))


def _unlearnt(files: Mapping[str, Sequence[Path]]) -> list[str]:
    """A sentence on classes that no training example has."""
    known = {split: {file.parent.name for file in group} for split, group in files.items()}
    new = sorted(set().union(*known.values()) - known.get("train", set().union(*known.values())))
    return [f"train has no image of {listing(new, 20)}."] if new else []


def _side(flag: str, size: Any, found: Counter[tuple[int, int]]) -> tuple[int, int]:
    if size is None and len(found) == 1:
        return next(iter(found))
    if size is None:
        smallest, largest = ("x".join(map(str, pick(found))) for pick in (min, max))
        raise UserError(
            f"{flag}: the images have {len(found)} sizes, from {smallest} to {largest} (height x width). "
            "Say which "
            "they are brought to, such as size=96 or size=(96, 128); crop=True keeps their proportions."
        )
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, tuple | list) else ()
    if len(sides) != 2 or not all(type(s) is int and 0 < s < 1 << 15 for s in sides):
        raise UserError(f"{flag}: size={size!r} is not a number of pixels, nor (height, width).")
    return sides[0], sides[1]
