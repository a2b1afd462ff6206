"""`philox.normal` as one kernel of a GPU, by Triton: the same bits in one pass over the memory.

Where there is no Triton, `philox` runs its operations one after the other, each a kernel over all
numbers. The formulas here are its own, with the same order of roundings; `enable_fp_fusion=False`
keeps the compiler from joining two roundings in one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import triton
import triton.language as tl

from pipeline.noise import constants

if TYPE_CHECKING:
    import torch

COUNTERS = 256  # of one program, each makes four numbers
OPTIONS = {"enable_fp_fusion": False}

_M0, _M1 = (tl.constexpr(m) for m in constants.MULTIPLIERS)
_W0, _W1 = (tl.constexpr(w) for w in constants.WEYL)
_ROUNDS = tl.constexpr(constants.ROUNDS)
# Kernels know single numbers as constants, no tuples.
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7 = (tl.constexpr(t) for t in constants.LOG_TERMS)
_S0, _S1, _S2, _S3, _S4, _S5, _S6 = (tl.constexpr(t) for t in constants.SIN_TERMS)
_MINUS_LOG2 = tl.constexpr(constants.MINUS_LOG2)
_ANGLE = tl.constexpr(math.pi / 2**31)
_SQRT_HALF = tl.constexpr((64 << 52) - constants.SQRT_HALF_BITS)
_TINY = tl.constexpr(2.0**-64)


def normal(
    out: torch.Tensor, key: tuple[int, int], slot: int | torch.Tensor, ids: torch.Tensor
) -> None:
    """Fill `out`, float32 [n, size] and contiguous, with the noises of `ids`, int64 [n].

    key: its two words. slot: a word, or one an id, int64 [n].
    """
    n, size = out.shape
    if not out.numel():
        return
    blocks = -(-size // 4)
    one = isinstance(slot, int)
    words = [_signed(word) for word in (*key, slot if one else 0)]
    programs = (triton.cdiv(n * blocks, COUNTERS),)
    _normal[programs](
        out,
        ids,
        ids if one else slot,
        *words,
        n * blocks,
        blocks,
        size,
        one_slot=one,
        counters=COUNTERS,
        **OPTIONS,
    )


def _signed(word: int) -> int:
    """32 bits as the number whose type does not depend on its value."""
    return word - (1 << 32) if word >> 31 else word


@triton.jit(do_not_specialize=["k0", "k1", "slot", "count", "blocks", "size"])
def _normal(
    out,
    ids,
    slots,
    k0,
    k1,
    slot,
    count,
    blocks,
    size,
    one_slot: tl.constexpr,
    counters: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * counters + tl.arange(0, counters)
    row, block = index // blocks, index % blocks
    id = tl.load(ids + row, mask=index < count, other=0)
    word = slot if one_slot else tl.load(slots + row, mask=index < count, other=0)
    c0 = block.to(tl.uint32)
    c1 = (id >> 32).to(tl.uint32)
    c2 = id.to(tl.uint32)
    c3 = tl.zeros_like(c0) + word.to(tl.uint32)
    k0, k1 = k0.to(tl.uint32), k1.to(tl.uint32)
    for _i in tl.static_range(_ROUNDS):
        m0, m1 = tl.full(c0.shape, _M0, tl.uint32), tl.full(c0.shape, _M1, tl.uint32)
        high0, high1 = tl.umulhi(c0, m0), tl.umulhi(c2, m1)
        low0, low1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + tl.full([], _W0, tl.uint32), k1 + tl.full([], _W1, tl.uint32)
    first, second = _box_muller(c0, c1)
    third, fourth = _box_muller(c2, c3)
    numbers = tl.interleave(tl.interleave(first, third), tl.interleave(second, fourth))
    place = tl.program_id(0).to(tl.int64) * counters * 4 + tl.arange(0, counters * 4)
    row, element = place // (4 * blocks), place % (4 * blocks)
    inside = (place < 4 * count) & (element < size)
    tl.store(out + row * size + element, numbers, mask=inside)


@triton.jit
def _box_muller(v, w):
    """Two words into two normals, float32, each; see `philox._box_muller`."""
    radius = tl.sqrt(_minus_log(v))
    x = ((w & 0x3FFFFFFF).to(tl.float64) - 536870912.0 + 0.5) * _ANGLE
    y = x * x
    sine = (((((y * _S6 + _S5) * y + _S4) * y + _S3) * y + _S2) * y + _S1) * y + _S0
    sine = sine * x
    cosine = tl.sqrt(1.0 - sine * sine)
    first, second = (cosine - sine) * radius, (cosine + sine) * radius
    first = tl.where((w >> 31) != 0, -first, first)
    second = tl.where(((w >> 30) & 1) != 0, -second, second)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def _minus_log(v):
    """-ln((v + 1/2) / 2^32), float64; see `philox._minus_log`."""
    bits = (v.to(tl.float64) + 0.5).to(tl.int64, bitcast=True)
    exponent = (bits + _SQRT_HALF) >> 52
    mantissa = (bits - (exponent << 52)).to(tl.float64, bitcast=True)
    x = (mantissa - _TINY) / (mantissa + _TINY)
    y = x * x
    log = ((((((y * _L7 + _L6) * y + _L5) * y + _L4) * y + _L3) * y + _L2) * y + _L1) * y + _L0
    return log * x + (exponent.to(tl.float64) - 96.0) * _MINUS_LOG2
