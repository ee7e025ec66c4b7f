"""Metrics of a whole split: numbers by hand, and scikit-learn's."""

import doctest

import numpy as np
import pytest

from trainer.model import scores


def test_the_examples_run():
    found = doctest.testmod(scores)
    assert found.attempted == 6 and found.failed == 0


def test_by_hand():
    labels, predicted = np.array([0, 0, 1, 2, 2, 2, -1]), np.array([0, 1, 1, 2, 2, 0, 2])
    matrix = scores.confusion_matrix(labels, predicted, 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    assert scores.per_class(matrix)[0].tolist() == [1 / 2, 1 / 2, 1 / 2, 2]
    assert scores.per_class(matrix)[3].tolist() == [0, 0, 0, 0]
    assert np.isnan(scores.auc(np.zeros(3), np.arange(3.0)))
    # Of 2 x 2 pairs three are in order and one is a tie.
    assert scores.auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.5, 0.5, 0.9])) == 3.5 / 4


@pytest.fixture(scope="module")
def drawn():
    """Labels, predictions and probabilities with ties, and a class that is never predicted."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 403)
    odds = random.random([403, 5]).round(1) + 0.05 + 0.4 * np.eye(5)[labels]
    odds[:, 4] *= 0.01
    return labels, odds.argmax(1), odds / odds.sum(1, keepdims=True)


def test_against_scikit_learn(drawn):
    sklearn = pytest.importorskip("sklearn.metrics")
    labels, predicted, odds = drawn
    matrix = scores.confusion_matrix(labels, predicted, 5)
    assert np.array_equal(matrix, sklearn.confusion_matrix(labels, predicted))
    ours = scores.per_class(matrix)
    theirs = sklearn.precision_recall_fscore_support(labels, predicted, zero_division=0)
    np.testing.assert_allclose(ours, np.stack(theirs, 1), rtol=0, atol=1e-12)
    f1 = sklearn.f1_score(labels, predicted, average="macro", zero_division=0)
    assert scores.f1_macro(labels, predicted) == pytest.approx(f1, abs=1e-12)
    positive, score = labels == 2, odds[:, 2].round(2)
    assert scores.auc(positive, score) == pytest.approx(sklearn.roc_auc_score(positive, score), abs=1e-12)
    many = sklearn.roc_auc_score(labels, odds, multi_class="ovr", average="macro")
    assert scores.auc(labels, odds) == pytest.approx(many, abs=1e-12)


def test_calibration_error_against_scikit_learns_curve(drawn):
    calibration = pytest.importorskip("sklearn.calibration")
    labels, predicted, odds = drawn
    confidence, hits = odds.max(1), labels == predicted
    fraction, mean = calibration.calibration_curve(hits, confidence, n_bins=15)
    counts, _ = np.histogram(confidence, np.linspace(0, 1, 16))
    expected = (np.abs(fraction - mean) * counts[counts > 0]).sum() / len(labels)
    assert scores.calibration_error(labels, odds, bins=15) == pytest.approx(expected, abs=1e-12)
