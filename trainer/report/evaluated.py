"""`evaluation.npz`: what a report shows of the data, kept by the last evaluation of a classifier.

Arrays of a bounded size, whatever the split's: the confusion matrix and the examples that were worst.
A file that is damaged, or not of these arrays, counts as none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILE = "evaluation.npz"
WORST = 24  # examples kept
SIDE = 96  # pixels of a kept image, at most
CLASSES = 1000  # more make a matrix that is no longer small


# Numbers of a few examples of a split -> their images, [K, height, width] or [K, height, width, channels].
Images = Callable[[np.ndarray], np.ndarray | None]


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation keeps of a classifier's outputs, C classes and K examples.

    Attributes:
      confusion: int64 [C, C], examples by (label, predicted).
      classes: names, C of them.
      rows: int64 [K], numbers of the worst examples in the split, the worst first.
      labels, predicted: int64 [K], of these examples.
      probability: float32 [K], what the model gave to the label.
      images: uint8 [K, height, width, channels of 1 or 3]; None where the data are no images.
      step: at which it was.
    """

    confusion: np.ndarray
    classes: tuple[str, ...]
    rows: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    images: np.ndarray | None
    step: int

    @classmethod
    def of(
        cls,
        logits: np.ndarray,
        labels: np.ndarray,
        images: Images | None = None,
        classes: tuple[str, ...] = (),
        step: int = 0,
    ) -> "Evaluated | None":
        """Of a whole split; None where it is too large for a matrix or not of a classifier.

        An example whose label is none of the classes (-1, say) counts nothing.

        Args:
          logits: [N, C]; softmax makes them probabilities.
          labels: integers [N].
          images: gives those of the worst, by their numbers in the split. Integers are taken as 0 to 255,
            floats are stretched from their least to their greatest value.
          classes: C names; the numbers where not given.
          step: of the run.

        Example:
          >>> logits = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
          >>> kept = Evaluated.of(logits, np.array([0, 1, 1]))
          >>> kept.confusion.tolist(), kept.rows.tolist()
          ([[1, 0], [1, 1]], [1, 2, 0])
        """
        logits, labels = np.asarray(logits), np.asarray(labels)
        if logits.ndim != 2 or labels.shape != logits.shape[:1] or not 2 <= logits.shape[1] <= CLASSES:
            return None
        count = logits.shape[1]
        if not np.issubdtype(labels.dtype, np.integer):
            return None
        known = np.flatnonzero((labels >= 0) & (labels < count))
        logits, labels = logits[known], labels[known]
        wide = logits.astype(np.float64)
        wide -= wide.max(1, keepdims=True)
        of_label = wide[np.arange(len(labels)), labels] - np.log(np.exp(wide).sum(1))
        predicted = logits.argmax(1)
        worst = np.argsort(np.nan_to_num(of_label, nan=-np.inf), kind="stable")[:WORST]
        rows = known[worst]
        shown = images(rows) if images and len(rows) else None
        return cls(
            np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count),
            tuple(map(str, classes)) if len(classes) == count else tuple(map(str, range(count))),
            rows,
            labels[worst].astype(np.int64),
            predicted[worst],
            np.exp(of_label[worst]).astype(np.float32),
            None if shown is None else _small(np.asarray(shown)),
            step,
        )

    def write(self, workdir: Path) -> None:
        """Writes `evaluation.npz`, whole or not at all.

        Raises:
          OSError: it cannot be written.
        """
        arrays = {name: value for name, value in vars(self).items() if value is not None}
        arrays["classes"] = np.array(self.classes, dtype=np.str_)
        aside = workdir / f".tmp-{FILE}"
        with open(aside, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        aside.replace(workdir / FILE)

    @classmethod
    def read(cls, path: Path) -> "Evaluated | None":
        """What `write` wrote; None where there is no such file, or another one of that name."""
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files if name in cls.__dataclass_fields__}
            classes = tuple(str(name)[:80] for name in found.pop("classes"))
            read = cls(
                classes=classes, images=found.pop("images", None), step=int(found.pop("step")), **found
            )
            return read if read._is_sound() else None
        except Exception:  # zipfile and NumPy raise what they like on damaged bytes
            return None

    def _is_sound(self) -> bool:
        """Whether shapes and types are as `of` makes them."""
        count, kept = len(self.classes), len(self.rows)
        whole = (self.confusion, self.rows, self.labels, self.predicted)
        return (
            2 <= count <= CLASSES
            and kept <= WORST
            and self.confusion.shape == (count, count)
            and all(np.issubdtype(a.dtype, np.integer) for a in whole)
            and all(a.shape == (kept,) for a in (self.labels, self.predicted, self.probability))
            and all(0 <= label < count for label in (*self.labels, *self.predicted))
            and (self.images is None or _are_images(self.images, kept))
        )

    def worst(self) -> tuple[list[str], list[list[str]]]:
        """Columns and a row for each of the worst examples: what it is, what it was taken for."""
        given = zip(self.labels, self.predicted, self.probability, self.rows, strict=True)
        rows = [[self.classes[a], self.classes[b], f"{p:.2g}", str(row)] for a, b, p, row in given]
        return ["label", "taken for", "probability of the label", "row of the split"], rows

    def per_class(self) -> list[tuple[str, int, float, float, float]]:
        """(class, examples, precision, recall, F1) of each; NaN where it was never met or never said."""
        hits, said, met = np.diag(self.confusion), self.confusion.sum(0), self.confusion.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            table = zip(self.classes, met, hits / said, hits / met, 2 * hits / (said + met), strict=True)
            return [(name, int(n), float(p), float(r), float(f)) for name, n, p, r, f in table]


def _are_images(images: np.ndarray, count: int) -> bool:
    return (
        images.dtype == np.uint8
        and images.ndim == 4
        and len(images) == count
        and max(images.shape[1:3]) <= SIDE
        and images.shape[3] in (1, 3)
    )


def _small(images: np.ndarray) -> np.ndarray | None:
    """uint8 [K, h, w, 1 or 3], every n-th pixel of a large one; None for what is no image."""
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        return None
    stride = -(-max(images.shape[1:3]) // SIDE)
    images = images[:, ::stride, ::stride]
    if np.issubdtype(images.dtype, np.integer):
        return np.clip(images, 0, 255).astype(np.uint8)
    with np.errstate(invalid="ignore", divide="ignore"):
        images = images.astype(np.float64)
        low, high = np.nanmin(images), np.nanmax(images)
        return np.nan_to_num((images - low) / (high - low) * 255).astype(np.uint8)
