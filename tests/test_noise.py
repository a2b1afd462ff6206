import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.noise import philox

KNOWN_ANSWERS = [  # Random123, kat_vectors, philox4x32 with 10 rounds
    ((0, 0), (0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize("key, counter, words", KNOWN_ANSWERS)
@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_philox_known_answers(key, counter, words, array):
    answer = philox.philox(key, tuple(array([c]) for c in counter))
    assert " ".join(f"{int(w[0]):08x}" for w in answer) == words


def reference_words(key, counter):
    """Philox4x32-10 straight from the paper, in Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            p1 >> 32 ^ c1 ^ k0,
            p1 & 0xFFFFFFFF,
            p0 >> 32 ^ c3 ^ k1,
            p0 & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def reference_normal(key, slot, id_, element):
    """One element, from the layout in the docstring and the standard library."""
    words = reference_words(key, (element // 4, id_ >> 32, id_ & 0xFFFFFFFF, slot))
    v, w = words[element % 4 // 2 * 2 :][:2]
    radius = math.sqrt(-2 * math.log((v + 0.5) / 2**32))
    theta = (w % 2**30 + 0.5) / 2**30 * math.pi / 2
    if element % 2 == 0:
        return (-1) ** (w >> 31) * radius * math.cos(theta)
    return (-1) ** (w >> 30 & 1) * radius * math.sin(theta)


u64, u32 = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(key=u64, slot=u32, id_=st.integers(0, 2**63 - 1), size=st.integers(1, 11))
def test_normal_follows_its_documented_layout(key, slot, id_, size):
    drawn = philox.normal(key, slot, np.array([id_]), (size,))
    expected = [reference_normal(key, slot, id_, e) for e in range(size)]
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn[0], expected, rtol=2**-23, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(key=u64, slot=u32, id_=st.integers(0, 2**63 - 1))
def test_uniform_follows_its_documented_layout(key, slot, id_):
    words = reference_words(key, (1 << 28, id_ >> 32, id_ & 0xFFFFFFFF, slot))
    drawn = philox.uniform(key, slot, np.array([id_]), (2,))[0]
    for value, (high, low) in zip(drawn, (words[:2], words[2:]), strict=True):
        assert value == ((high << 20 | low >> 12) + 0.5) / 2**52
    assert philox.uniform(key, slot, np.array([id_])) == drawn[:1]


EDGES = [0, 1, 2, 3, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
AROUND_SQRT_HALF = [int(math.sqrt(0.5) * 2**e) + d for e in range(2, 33) for d in (-1, 0, 1)]


def test_box_muller_is_accurate_in_float64():
    random = np.random.default_rng(0)
    v = np.array(EDGES + AROUND_SQRT_HALF + list(random.integers(0, 2**32, 200_000)))
    w = np.resize(np.array(EDGES + list(random.integers(0, 2**32, 199_999))), v.shape)
    v_edge, w_edge = (table.ravel() for table in np.meshgrid(EDGES, EDGES))
    v, w = np.concatenate([v, v_edge]), np.concatenate([w, w_edge])
    drawn = np.empty((len(v), 4))
    philox._box_muller((v, w, v, w), drawn)
    # (v + 1/2) / 2^32 and its complement are exact, so this is accurate near both ends.
    minus_log = np.where(v < 2**31, -np.log((v + 0.5) / 2**32), -np.log1p((v + 0.5) / 2**32 - 1))
    theta = (w % 2**30 + 0.5) / 2**30 * np.pi / 2
    radius = np.sqrt(2 * minus_log)
    expected = np.stack(
        [
            np.where(w >> 31, -1, 1) * radius * np.cos(theta),
            np.where(w >> 30 & 1, -1, 1) * radius * np.sin(theta),
        ],
        axis=1,
    )
    assert np.abs(drawn[:, :2] - expected).max() < 1e-12
    np.testing.assert_array_equal(drawn[:, :2], drawn[:, 2:])
    log = philox._minus_log(v.copy(), np.float64, np.int64)
    assert (np.abs(log / minus_log - 1)).max() < 1e-12
    assert 6.76 < np.abs(drawn).max() < 6.77


@pytest.mark.parametrize("shape", [(1, 16, 16), (7,), (3, 50, 61)])
@pytest.mark.parametrize("slot", [0, 2**32 - 1])
def test_numpy_and_torch_agree_to_the_last_bit(shape, slot):
    ids = np.array([0, 5, 5, 2**31, 2**32 + 7, 2**62, -1])
    drawn = philox.normal(99, slot, ids, shape)
    public = philox.normal(99, slot, torch.from_numpy(ids), shape)
    # The operations that run on an accelerator, here on the CPU.
    words = (99, 0)
    use = (philox._NORMAL, 4, np.float32, philox._box_muller, words)
    operations = philox._generate(*use, slot, torch.from_numpy(ids), shape)
    assert public.dtype == operations.dtype == torch.float32
    assert public.shape == operations.shape == drawn.shape == (7, *shape)
    np.testing.assert_array_equal(public.numpy().view(np.int32), drawn.view(np.int32))
    np.testing.assert_array_equal(operations.numpy().view(np.int32), drawn.view(np.int32))
    use = (philox._UNIFORM, 2, np.float64, philox._open_interval, words)
    np.testing.assert_array_equal(
        philox._generate(*use, slot, torch.from_numpy(ids), shape).numpy(),
        philox.uniform(99, slot, ids, shape),
    )
    np.testing.assert_array_equal(
        philox.randint(99, slot, torch.from_numpy(ids), 1000).numpy(),
        philox.randint(99, slot, ids, 1000),
    )


def test_bits_are_pinned():
    """Changing any number is a new `VERSION`: stored pairings and resumed runs rely on them."""
    ids = np.arange(1000)
    parts = (
        philox.normal(philox.derive_key(0, "a"), 1, ids, (3, 5)),
        philox.uniform(philox.derive_key(0, "b"), 2, ids),
        philox.permutation(philox.derive_key(0, "c"), 3, 1001),
    )
    digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    assert (philox.VERSION, digest) == (
        1,
        "f156ff6be657a9278eca79de39af5bccc0a10f16bfb9f3418c597dcc643617de",
    )


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_numbers_depend_on_their_counter_alone(monkeypatch, chunk):
    ids = np.arange(20)
    drawn = philox.normal(1, 2, ids, (40,))
    monkeypatch.setattr(philox, "_CHUNK_CPU", chunk)
    np.testing.assert_array_equal(philox.normal(1, 2, ids, (40,)), drawn)
    np.testing.assert_array_equal(
        philox.normal(1, 2, ids[[7, 3]], (5, 7))[1].ravel(), drawn[3, :35]
    )
    slots = np.full(20, 2)
    slots[4] = 9
    mixed = philox.normal(1, slots, ids, (40,))
    np.testing.assert_array_equal(mixed[4], philox.normal(1, 9, ids[4:5], (40,))[0])
    np.testing.assert_array_equal(np.delete(mixed, 4, 0), np.delete(drawn, 4, 0))


def test_distribution_is_standard_normal():
    drawn = philox.normal(philox.derive_key("test"), 0, np.arange(20_000), (50,)).astype(float)
    n = drawn.size
    flat = drawn.ravel()
    # Standard errors of the first six moments of n normals: sqrt((E x^2k - (E x^k)^2) / n).
    for power, moment, variance in [
        (1, 0, 1),
        (2, 1, 2),
        (3, 0, 15),
        (4, 3, 96),
        (5, 0, 945),
        (6, 15, 10170),
    ]:
        assert abs((flat**power).mean() - moment) < 4 * math.sqrt(variance / n)
    assert stats.kstest(flat, "norm").pvalue > 0.001
    for bound in (3.0, 4.0, 4.5):
        expected = 2 * stats.norm.sf(bound) * n
        assert abs((np.abs(flat) > bound).sum() - expected) < 4 * math.sqrt(expected) + 1
    # The two of one Box-Muller pair share radius and angle, and must still be independent.
    first, second = drawn[:, 0::2].ravel(), drawn[:, 1::2].ravel()
    for a, b in [(first, second), (first**2, second**2), (abs(first), second)]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(n / 2)


def test_ids_elements_slots_keys_and_uses_are_independent():
    ids = np.arange(4000)
    base = philox.normal(7, 0, ids, (16,)).ravel()
    others = [
        philox.normal(7, 0, ids + 4000, (16,)),
        philox.normal(7, 0, ids + 2**32, (16,)),
        philox.normal(7, 1, ids, (16,)),
        philox.normal(8, 0, ids, (16,)),
        philox.normal(7 + 2**32, 0, ids, (16,)),
        philox.normal(7, 0, ids, (32,))[:, 16:],
        philox.uniform(7, 0, ids, (16,)) - 0.5,
    ]
    for other in others:
        assert abs(np.corrcoef(base, other.ravel())[0, 1]) < 4 / math.sqrt(base.size)
    # Rows against rows: the largest correlation of 4000 x 4000 ids is that of independent ones.
    wide = philox.normal(7, 3, ids[:1000], (1024,)).astype(float)
    correlation = np.corrcoef(wide) - np.eye(1000)
    assert np.abs(correlation).max() < 6.2 / math.sqrt(1024)
    assert abs(correlation.std() * math.sqrt(1024) - 1) < 0.01


def test_uniform_and_randint_distributions():
    ids = np.arange(100_000)
    drawn = philox.uniform(3, 0, ids)
    assert drawn.min() > 0 and drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 0.001
    values = philox.randint(3, 1, ids, 10)
    assert values.dtype == np.int64
    assert stats.chisquare(np.bincount(values, minlength=10)).pvalue > 0.001
    assert len(np.bincount(values)) == 10


def test_permutation_is_one_and_is_uniform():
    for n in (0, 1, 2, 1001):
        assert sorted(philox.permutation(1, 0, n)) == list(range(n))
    orders = [tuple(philox.permutation(5, slot, 4)) for slot in range(4800)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 0.001


def test_derive_key_is_injective_and_pinned():
    keys = [
        philox.derive_key(*parts)
        for parts in [
            (),
            (1,),
            ("1",),
            (1, 1),
            (11,),
            ("a", "b"),
            ("ab",),
            ("a", 1),
            ("a1",),
            (-1,),
        ]
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)
    encoded = b"s" + (4).to_bytes(8, "little") + b"pair" + b"i" + (2).to_bytes(8, "little") + b"42"
    expected = int.from_bytes(hashlib.sha256(encoded).digest()[:8], "little")
    assert philox.derive_key("pair", np.int64(42)) == expected
    with pytest.raises(TypeError):
        philox.derive_key(1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"key": -1},
        {"key": 2**64},
        {"slot": 2**32},
        {"slot": np.array([1, 2])},
        {"slot": np.array([-1, 1, 1])},
        {"ids": np.arange(3, dtype=np.int32)},
        {"ids": np.zeros((1, 3), np.int64)},
        {"shape": (2**16, 2**15)},
        {"device": "cpu"},
    ],
)
def test_misuse_is_refused(change):
    good = {"key": 1, "slot": 1, "ids": np.arange(3), "shape": (2,)}
    with pytest.raises(ValueError):
        philox.normal(**good | change)


def test_import_does_not_load_torch():
    code = "import sys, pipeline.noise.philox; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
