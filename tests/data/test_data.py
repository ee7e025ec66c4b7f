"""Where data come from, in which order, and that replicas, workers and resumes change nothing."""

import numpy as np

from trainer.data.feed import order


def test_order_by_hand():
    def epoch(number):
        raw = np.random.Philox(key=np.array([7, number], np.uint64)).random_raw(10)
        return sorted(range(10), key=lambda i: raw[i])

    stream = epoch(0) + epoch(1) + epoch(2)
    assert order(7, 10, 0, 30).tolist() == stream
    for start, count in [(0, 3), (8, 5), (10, 10), (9, 21), (29, 1), (4, 0)]:
        assert order(7, 10, start, count).tolist() == stream[start : start + count]


def test_order_stays_what_it_was():
    # A resumed run relies on it: these numbers may never change.
    assert order(0, 8, 0, 16).tolist() == [0, 2, 1, 5, 4, 3, 6, 7, 5, 3, 7, 2, 4, 1, 0, 6]


def test_order_is_a_fresh_permutation_each_epoch_and_seed():
    first, second, other = (order(s, 1000, k, 1000) for s, k in [(1, 0), (1, 1000), (2, 0)])
    for epoch in (first, second, other):
        assert sorted(epoch) == list(range(1000))
    for a, b in [(first, second), (first, other), (second, other), (first[:-1], first[1:])]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.12
