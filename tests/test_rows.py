"""pipeline/rows.py: fair subsets and balanced label sequences."""

import numpy as np
import pytest

from pipeline.rows import cut, label_sequence, shares, spread


@pytest.mark.parametrize("labels", [np.repeat(range(4), 8), np.tile(range(4), 8)])
def test_every_class_gets_its_share_however_the_rows_are_sorted(labels):
    rows = spread(8, 32, labels)
    assert np.bincount(labels[rows]).tolist() == [2, 2, 2, 2]
    assert (np.diff(rows) > 0).all()


def test_shares_are_proportional_to_one_row():
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    assert np.bincount(labels[spread(10, 100, labels)]).tolist() == [7, 2, 1]
    counts = np.bincount(labels[spread(33, 100, labels)], minlength=3)
    assert counts.sum() == 33 and (abs(counts - 33 * np.array([0.7, 0.2, 0.1])) < 1).all()


def test_fewer_rows_than_classes_are_not_the_first_classes():
    labels = np.repeat(range(100), 5)
    chosen = labels[spread(10, 500, labels)]
    assert len(set(chosen)) == 10 and chosen.max() > 50


def test_without_labels_it_is_a_fixed_sample_without_a_period():
    rows = spread(1000, 10_000)
    assert len(set(rows)) == 1000 and (rows == spread(1000, 10_000)).all()
    assert abs(rows.mean() - 5000) < 300
    assert np.bincount(rows % 10).min() > 60  # evenly spaced rows would all be 0 modulo 10


def test_bounds():
    assert spread(0, 5).tolist() == []
    assert spread(5, 5, np.zeros(5, int)).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="cannot choose 6 of 5"):
        spread(6, 5)


@pytest.mark.parametrize("counts", [[90, 10], [1] * 10, [5, 0, 3, 2], [178, 182, 177, 183], [0, 7]])
def test_labels_follow_the_counts(counts):
    share, total = np.array(counts), sum(counts)
    sequence = label_sequence(counts, 3 * total)
    assert np.bincount(sequence[:total], minlength=len(counts)).tolist() == counts
    assert (sequence[total : 2 * total] == sequence[:total]).all()
    for length in range(1, total):
        found = np.bincount(sequence[:length], minlength=len(counts))
        assert (abs(found - share * length / total) < 1.0 + 1e-9).all()
    assert (label_sequence(counts, total // 2) == sequence[: total // 2]).all()


def test_random_counts_end_exactly():
    random = np.random.default_rng(0)
    for _ in range(200):
        counts = random.integers(0, 30, random.integers(1, 40))
        if counts.sum():
            found = label_sequence(counts, counts.sum())
            assert np.bincount(found, minlength=len(counts)).tolist() == counts.tolist()


def test_no_labels():
    with pytest.raises(ValueError, match="no labels"):
        label_sequence([0, 0], 4)


def test_shares_say_what_is_taken_of_each_class():
    labels = np.random.default_rng(0).choice([0, 1, 3], 500, p=[0.7, 0.28, 0.02])
    counts = np.bincount(labels, minlength=5)
    for count in (0, 1, 33, 499):
        taken = np.bincount(labels[spread(count, 500, labels)], minlength=5)
        assert shares(counts, count).tolist() == taken.tolist()


def test_a_cut_keeps_the_order_of_both_parts():
    labels = np.repeat(range(4), 8)
    order = cut(32, 8, labels)
    assert sorted(order) == list(range(32))
    assert (np.diff(order[:24]) > 0).all() and (np.diff(order[24:]) > 0).all()
    assert np.bincount(labels[order[:24]]).tolist() == [6, 6, 6, 6]
    assert cut(5, 0).tolist() == [0, 1, 2, 3, 4]
