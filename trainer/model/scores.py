"""Metrics that are no mean over examples, of a whole split at once: NumPy arrays in, numbers or arrays out.

For the `metrics` of a model module. Labels run from 0; N counts examples.
A row whose label is none of the classes (-1, say) counts nothing.
"""

import numpy as np


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]: how many examples of the class of the row were taken for that of the column.

    Example:
      >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 0]), 2).tolist()
      [[1, 0], [1, 1]]
    """
    labels, predicted = _classes(labels, predicted, classes)
    cells = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)


def per_class(confusion: np.ndarray) -> np.ndarray:
    """float64 [classes, 4]: precision, recall, F1 and examples of each class; 0 for a share of nothing.

    Args:
      confusion: of `confusion_matrix`.

    Example:
      >>> per_class(np.array([[1, 0], [1, 1]])).round(2).tolist()
      [[0.5, 1.0, 0.67, 1.0], [1.0, 0.5, 0.67, 2.0]]
    """
    hits = np.diag(confusion).astype(np.float64)
    precision = _share(hits, confusion.sum(0))
    recall = _share(hits, confusion.sum(1))
    f1 = _share(2 * hits, confusion.sum(0) + confusion.sum(1))
    return np.stack([precision, recall, f1, confusion.sum(1).astype(np.float64)], 1)


def f1_macro(labels: np.ndarray, predicted: np.ndarray) -> float:
    """The mean F1 of the classes that are there, in the labels or among the predictions.

    Example:
      >>> round(f1_macro(np.array([0, 1, 1]), np.array([0, 1, 0])), 4)
      0.6667
    """
    classes = int(max(np.max(labels), np.max(predicted))) + 1
    confusion = confusion_matrix(labels, predicted, classes)
    present = confusion.sum(0) + confusion.sum(1) > 0
    return float(per_class(confusion)[present, 2].mean())


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; NaN where only one class is there.

    The probability that a positive example has a higher score than a negative one, ties counting half
    (Hanley & McNeil 1982). With scores [N, C], C > 2: the mean over the classes, each against the rest.

    Args:
      labels: [N], 0 or 1; below C where scores are [N, C].
      scores: [N], or [N, C]; of [N, 2] the second column counts.

    Example:
      >>> auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
      0.75
    """
    labels = np.asarray(labels)
    if np.ndim(scores) == 2:
        classes = scores.shape[1]
        if classes > 2:
            return float(np.mean([auc(labels == k, scores[:, k]) for k in range(classes)]))
        scores = scores[:, 1]
    positive = labels == 1
    count = int(positive.sum())
    others = len(labels) - count
    if not count or not others:
        return float("nan")
    _, where, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(ties) - (ties - 1) / 2  # of equal scores, the mean of their places
    return float((ranks[where][positive].sum() - count * (count + 1) / 2) / (count * others))


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017), from 0 to 1.

    Examples are put by their confidence, the largest probability, into equal bins of (0, 1]; the gap between
    a bin's accuracy and its mean confidence counts by its share of the examples.

    Args:
      labels: [N].
      probabilities: [N, C], rows that sum to 1.
      bins: how many.

    Example:
      >>> round(calibration_error(np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]])), 4)
      0.35
    """
    confidence = probabilities.max(1).astype(np.float64)
    hits = (probabilities.argmax(1) == labels).astype(np.float64)
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    gap = np.bincount(bin_of, hits - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float64 [N, C] of logits [N, C].

    Example:
      >>> softmax(np.array([[0.0, 0.0]])).tolist()
      [[0.5, 0.5]]
    """
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    odds = np.exp(shifted)
    return odds / odds.sum(1, keepdims=True)


def _classes(labels: np.ndarray, predicted: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    labels, predicted = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    known = (labels >= 0) & (labels < classes)
    return labels[known], predicted[known]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
