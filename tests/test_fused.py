"""The generator's kernel for GPUs, in Triton's interpreter: the bits that numpy gives."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# In a process of its own: Triton decides as a kernel is defined whether it is to be interpreted.
COMPARE = """
import json
import numpy as np
import torch
from pipeline.noise import fused, philox

odd = []
ids = np.array([0, 5, 5, 2**31, 2**32 + 7, 2**62, -1, *range(100, 180)])
for key in (99, 2**64 - 1):
    for slot in (0, 1, 2**31, 2**32 - 1, ids % 7):
        for shape in ((1,), (7,), (3, 5, 5), (1, 16, 16)):
            out = torch.full((len(ids), int(np.prod(shape))), torch.nan)
            given = torch.from_numpy(slot) if isinstance(slot, np.ndarray) else slot
            fused.normal(out, philox._key_words(key), given, torch.from_numpy(ids))
            wanted = philox.normal(key, slot, ids, shape).reshape(len(ids), -1)
            odd.append(int((out.numpy().view("i4") != wanted.view("i4")).sum()))
fused.normal(torch.empty(0, 4), (1, 2), 3, torch.empty(0, dtype=torch.int64))
print(json.dumps(odd))
"""


def test_the_kernel_has_the_bits_of_numpy():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", COMPARE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0] * 40


def test_no_two_roundings_become_one():
    """What is compiled for a GPU, which takes none: every operation rounds by itself."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from pipeline.noise import fused

    numbers = ("k0", "k1", "slot", "count", "blocks", "size")
    signature = {"out": "*fp32", "ids": "*i64", "slots": "*i64", **dict.fromkeys(numbers, "i32")}
    constants = {"one_slot": True, "counters": fused.COUNTERS}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fused._normal, signature, constexprs=constants)
    target = GPUTarget("cuda", 90, 32)
    assembly = compile(source, target=target, options=fused.OPTIONS).asm["ptx"]
    assert "fma" not in assembly
    assert "fma" in compile(source, target=target, options={}).asm["ptx"]  # else it says nothing
    assert "div.rn.f64" in assembly and "sqrt.rn.f64" in assembly
    assert "div.full" not in assembly and "approx" not in assembly
