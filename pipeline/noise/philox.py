"""Counter-based noise: `noise(key, slot, id)` is a pure function, equal on every device.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011). Nothing is ever seeded or stored: any noise is computed from its counter, so training can
resume, shard or move without changing a bit.

Counter layout, version 1 (four 32-bit words) and key:

| word | holds |
|---|---|
| c0 | use << 28 \\| block; use: 0 `normal`, 1 `uniform` and `randint`, 2 `permutation` |
| c1 | id >> 32 |
| c2 | id & 0xffffffff |
| c3 | slot |
| k0, k1 | key & 0xffffffff, key >> 32 |

`normal` takes elements 4b .. 4b+3 (row-major within `shape`) from block b: words (w0, w1) give
elements 4b and 4b+1, words (w2, w3) give 4b+2 and 4b+3. From two words (v, w)

    u = (v + 1/2) / 2^32
    theta = ((w mod 2^30) + 1/2) / 2^30 * pi/2         an angle within the first quadrant
    first  = (-1)^(bit 31 of w) * sqrt(-2 ln u) * cos(theta)
    second = (-1)^(bit 30 of w) * sqrt(-2 ln u) * sin(theta)

which is Box-Muller with the quadrant drawn as two signs; |noise| reaches 6.76. `uniform` takes
elements 2b and 2b+1 from block b, 52 bits each.

Logarithm and sine are computed here from operations that IEEE 754 rounds correctly (+, -, *, /,
square root) and integer operations, in float64 and each as a kernel of its own, then rounded once
to float32. Library functions differ in the last bit between numpy, torch and CUDA; these cannot,
as long as no compiler fuses them. On a GPU with Triton all of `normal` is one kernel (`fused`).
"""

import functools
import hashlib
import math
import operator
from typing import Any

import numpy as np

from pipeline.noise.constants import (
    LOG_TERMS,
    MINUS_LOG2,
    MULTIPLIERS,
    ROUNDS,
    SIN_TERMS,
    SQRT_HALF_BITS,
    WEYL,
)

VERSION = 1
"""Raised whenever any number made here changes; stored in every artefact that relies on it."""

RNG = f"philox4x32-10/box-muller/{VERSION}"

_MASK = 0xFFFFFFFF
_NORMAL, _UNIFORM, _PERMUTATION = (use << 28 for use in range(3))
_MAX_BLOCKS = 1 << 28

# Blocks worked on at once. On a CPU the working set (about 6 arrays of 8 bytes) stays in the cache;
# elsewhere kernels must be large. The numbers do not depend on it.
_CHUNK_CPU = 1 << 14
_CHUNK_DEVICE = 1 << 22

# Integers below 2^52 become float64 exactly by filling the fraction of 2^52.
_TWO52_BITS = 0x4330000000000000
_TWO52 = 2.0**52
_SIGN_BIT = -(1 << 63)


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from a path of names and numbers, e.g. `derive_key(seed, "pairing")`.

    SHA-256 of an injective encoding: different parts give unrelated keys, and `1` is not `"1"`.
    Raises TypeError for a part that is neither a string nor an integer.
    """
    encoded = bytearray()
    for part in parts:
        tag = b"s" if isinstance(part, str) else b"i"
        text = part if isinstance(part, str) else str(operator.index(part))
        data = text.encode()
        encoded += tag + len(data).to_bytes(8, "little") + data
    return int.from_bytes(hashlib.sha256(encoded).digest()[:8], "little")


def normal(key: int, slot: Any, ids: Any, shape: tuple[int, ...], device: Any = None) -> Any:
    """Standard normal noise number `id` of `slot` under `key`, for every id.

    ids: int64 [n], a numpy array or a torch tensor; the answer is of the same kind, float32
    [n, *shape], made where `ids` lives and then moved to `device` (torch only). `slot` is an
    integer below 2^32, or an int64 array like `ids` with one slot per id. A number depends on
    (key, slot, id, element index) alone, so a prefix of a longer noise is that noise. The place
    where `ids` lives needs float64.

    Raises ValueError for a bad key, slot or ids, or a shape of more than 2^30 elements.
    """
    return _dispatch(_NORMAL, 4, np.float32, _box_muller, key, slot, ids, shape, device)


def uniform(key: int, slot: Any, ids: Any, shape: tuple[int, ...] = (), device: Any = None) -> Any:
    """Uniform numbers (k + 1/2) / 2^52, strictly inside (0, 1): float64 [n, *shape].

    Arguments and errors as for `normal`, independent of it under the same arguments.
    """
    return _dispatch(_UNIFORM, 2, np.float64, _open_interval, key, slot, ids, shape, device)


def randint(
    key: int, slot: Any, ids: Any, high: int, shape: tuple[int, ...] = (), device: Any = None
) -> Any:
    """Uniform integers in [0, high), high <= 2^31: int64 [n, *shape], floor(high * `uniform`).

    The probabilities differ from 1 / high by less than 2^-52.
    """
    if not 0 < high <= 1 << 31:
        raise ValueError(f"high must be in 1..2^31, not {high}")
    scaled = uniform(key, slot, ids, shape, device) * high
    return scaled.astype(np.int64) if isinstance(scaled, np.ndarray) else scaled.long()


def permutation(key: int, slot: int, n: int) -> np.ndarray:
    """A uniformly random permutation of range(n), int64 [n]: the stable order of n 64-bit words."""
    w0, w1, w2, w3 = philox(
        _key_words(key),
        (np.array([_PERMUTATION]), 0, np.arange((n + 1) // 2), _slot_word(slot)),
    )
    words = np.stack([w0 << 32 | w1, w2 << 32 | w3], axis=1).reshape(-1)[:n]
    return np.argsort(words.view(np.uint64), kind="stable")


def philox(key: tuple[int, int], counter: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10: four 32-bit words per counter, held in int64.

    counter: four int64 arrays or tensors with values in [0, 2^32) whose shapes broadcast (the
    second and fourth may be plain integers); key: two integers in [0, 2^32).
    """
    (m0, m1), (k0, k1) = MULTIPLIERS, key
    c0, c1, c2, c3 = counter
    # Values stay below 2^32 where they are multiplied; elsewhere the high half may hold anything
    # (int64 products wrap around), and is cut off with the next mask or at the end.
    for i in range(ROUNDS):
        p0, p1 = c0 * m0, c2 * m1
        c0 = _mix(p1, c1, (k0 + i * WEYL[0]) & _MASK)
        c2 = _mix(p0, c3, (k1 + i * WEYL[1]) & _MASK)
        c1, c3 = p1, p0
    return c0, c1 & _MASK, c2, c3 & _MASK


def _mix(product: Any, word: Any, key: int) -> Any:
    mixed = (product >> 32) ^ word
    mixed ^= key
    mixed &= _MASK
    return mixed


def _dispatch(use, per_block, dtype, transform, key, slot, ids, shape, device):
    """Check the arguments, and run on the kind of array that is fastest where `ids` lives."""
    if str(ids.dtype).removeprefix("torch.") != "int64" or ids.ndim != 1:
        raise ValueError(f"ids must be int64 of one dimension, not {ids.dtype} {tuple(ids.shape)}")
    if isinstance(ids, np.ndarray) and device is not None:
        raise ValueError("device is for torch ids only")
    blocks = -(-math.prod(shape) // per_block)
    if blocks > _MAX_BLOCKS:
        raise ValueError(f"shape {shape} is too large: {math.prod(shape)} elements per id")
    if getattr(slot, "shape", ()) == ():
        slot = _slot_word(slot)
    elif (type(slot), slot.dtype, slot.shape) != (type(ids), ids.dtype, ids.shape) or not (
        (slot >= 0) & (slot <= _MASK)
    ).all():
        raise ValueError("slot must be one integer in 0..2^32-1, or an array of them like ids")
    arguments = (use, per_block, dtype, transform, _key_words(key))
    if isinstance(ids, np.ndarray):
        return _generate(*arguments, slot, ids, shape)
    import torch

    # On a CPU, numpy runs these operations about twice as fast as torch, with the same bits.
    if ids.device.type == "cpu":
        slot = slot.numpy() if isinstance(slot, torch.Tensor) else slot
        out = torch.from_numpy(_generate(*arguments, slot, ids.numpy(), shape))
    elif use == _NORMAL and ids.device.type == "cuda" and (fused := _fused()):
        out = torch.empty((len(ids), math.prod(shape)), dtype=torch.float32, device=ids.device)
        fused.normal(out, arguments[-1], slot, ids)
        out = out.reshape(len(ids), *shape)
    else:
        out = _generate(*arguments, slot, ids, shape)
    return out if device is None else out.to(device)


@functools.cache
def _fused() -> Any:
    """The module of that name; None where there is no Triton."""
    try:
        from pipeline.noise import fused
    except ImportError:
        return None
    return fused


def _generate(use, per_block, dtype, transform, key_words, slot, ids, shape):
    """float [n, *shape] from the words of every block of every id, worked on in chunks."""
    n, size = len(ids), math.prod(shape)
    blocks = -(-size // per_block)
    if isinstance(ids, np.ndarray):
        out = np.empty((n, blocks, per_block), dtype)
        block = np.arange(blocks, dtype=np.int64)
        chunk = _CHUNK_CPU
    else:
        import torch

        dtype = getattr(torch, np.dtype(dtype).name)
        out = torch.empty((n, blocks, per_block), dtype=dtype, device=ids.device)
        block = torch.arange(blocks, dtype=torch.int64, device=ids.device)
        chunk = _CHUNK_DEVICE
    block |= use
    rows = max(1, chunk // max(1, blocks))
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        some = ids[part, None]
        some_slots = slot if isinstance(slot, int) else slot[part, None]
        for first in range(0, blocks, chunk):
            cut = slice(first, first + chunk)
            # In this order the first two rounds run on a row or a column instead of a table.
            counter = (block[cut], (some >> 32) & _MASK, some & _MASK, some_slots)
            transform(philox(key_words, counter), out[part, cut])
    return out.reshape(n, blocks * per_block)[:, :size].reshape((n, *shape))


def _key_words(key: int) -> tuple[int, int]:
    key = operator.index(key)
    if not 0 <= key < 1 << 64:
        raise ValueError(f"key must be a 64-bit unsigned integer, not {key}")
    return key & _MASK, key >> 32


def _slot_word(slot: int) -> int:
    slot = operator.index(slot)
    if not 0 <= slot < 1 << 32:
        raise ValueError(f"slot must be in 0..2^32-1, not {slot}")
    return slot


def _box_muller(words, out) -> None:
    """Four words [...] into four normals out [..., 4]."""
    floats, integers, sqrt = _kind(out)
    for i in (0, 2):
        v, w = words[i], words[i + 1]
        radius = sqrt(_minus_log(v, floats, integers))
        # theta - pi/4, so that both cos(theta) and sin(theta) come from one short series:
        # sqrt(2) cos(theta) = cos - sin, sqrt(2) sin(theta) = cos + sin of this angle.
        angle = (w & 0x3FFFFFFF) | _TWO52_BITS
        angle = angle.view(floats)
        angle -= _TWO52 + 2.0**29
        angle += 0.5
        angle *= math.pi / 2**31
        square = angle * angle
        sine = _polynomial(SIN_TERMS, square)
        sine *= angle
        cosine = sqrt(1.0 - sine * sine)
        for j, value in enumerate((cosine - sine, cosine + sine)):
            value *= radius
            sign = w << (32 + j)
            sign &= _SIGN_BIT
            sign ^= value.view(integers)
            out[..., i + j] = sign.view(floats)


def _minus_log(v, floats, integers):
    """-ln((v + 1/2) / 2^32), float64, for integers v in [0, 2^32)."""
    v = (v | _TWO52_BITS).view(floats)
    v -= _TWO52 - 0.5
    bits = v.view(integers)
    # v + 1/2 = 2^e * m with m in [sqrt(1/2), sqrt(2)); `bits` becomes m / 2^64.
    exponent = bits + ((64 << 52) - SQRT_HALF_BITS)
    exponent >>= 52
    bits -= exponent << 52
    exponent |= _TWO52_BITS
    exponent = exponent.view(floats)
    exponent -= _TWO52 + 64 + 32
    exponent *= MINUS_LOG2
    # ln m = 2 artanh((m - 1) / (m + 1)).
    ratio = v - 2.0**-64
    v += 2.0**-64
    ratio /= v
    square = ratio * ratio
    result = _polynomial(LOG_TERMS, square)
    result *= ratio
    result += exponent
    return result


def _polynomial(terms, x):
    result = x * terms[-1]
    for term in terms[-2:0:-1]:
        result += term
        result *= x
    result += terms[0]
    return result


def _open_interval(words, out) -> None:
    """Four words [...] into two uniforms out [..., 2]."""
    floats, _, _ = _kind(out)
    for i in (0, 1):
        bits = words[2 * i] << 20
        bits |= words[2 * i + 1] >> 12
        bits |= 0x3FF0000000000000
        value = bits.view(floats)
        value -= 1.0 - 2.0**-53
        out[..., i] = value


def _kind(out):
    """float64 and int64 to view as, and the square root, for arrays of this kind."""
    if isinstance(out, np.ndarray):
        return np.float64, np.int64, np.sqrt
    import torch

    return torch.float64, torch.int64, torch.sqrt


def normal_by_torch(key: int, slot: int, ids: Any, shape: tuple[int, ...]) -> Any:
    """`normal` for a torch tensor of ids and one slot, without numpy and so slower on a CPU."""
    import torch

    blocks = torch.arange(-(-math.prod(shape) // 4), device=ids.device)
    found = torch.empty((len(ids), len(blocks), 4), device=ids.device)
    for row, part in zip(found, ids[:, None], strict=True):
        counter = (blocks, part >> 32, part & _MASK, slot)
        _box_muller(philox((key & _MASK, key >> 32), counter), row)
    return found.flatten(1)[:, : math.prod(shape)].reshape(len(ids), *shape)
