"""torch.compile for a training step, with a measurement of whether it pays."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from pipeline.errors import UserError, one_line

TIMED_STEPS = 3

Forward = Callable[..., torch.Tensor]


def compiled(
    network: torch.nn.Module,
    inputs: tuple[Any, ...],
    images: int,
    *,
    autocast: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> Forward:
    """`network` compiled for batches of the shapes of `inputs`; its parameters stay its own.

    Batches of another size, such as a run's last, go through the network itself: to compile for
    them as well would take longer than they do. Compiles at once, times some forward and backward
    passes of both, and logs after how many images compiling has paid, of the `images` of the run.
    What is timed never changes what is trained. Raises UserError if nothing here can compile.
    """
    x = inputs[0]
    device = x.device

    def seconds(forward: Forward) -> float:
        """Of one forward and backward pass; gradients are dropped."""
        _wait(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            output = forward(*inputs)
        output.float().square().mean().backward()
        network.zero_grad(set_to_none=True)
        _wait(device)
        return time.perf_counter() - start

    torch.compiler.reset()  # or a process that trains many networks would run out of its cache
    fast = torch.compile(network, dynamic=False)
    try:
        first = seconds(fast)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as e:
        raise UserError(
            f"training.compile: torch.compile failed ({one_line(e)}); it needs a C++ compiler on a "
            "CPU and Triton on a GPU; set training.compile: false to train without"
        ) from e
    seconds(network)
    times = [(seconds(network), seconds(fast)) for _ in range(TIMED_STEPS)]
    plain, quick = (min(pair) for pair in zip(*times, strict=True))
    log(verdict(first, plain, quick, len(x), images))

    def forward(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        return (fast if len(x) == len(inputs[0]) else network)(x, *rest)

    return forward


def verdict(first: float, plain: float, quick: float, batch: int, images: int) -> str:
    """Whether compiling pays, in words. Seconds of compiling, and of a step without and with it."""
    text = f"compiled in {first:.0f} s; a step takes {plain / quick:.2f} times less"
    if quick >= plain:
        return f"{text}: it never pays here, training.compile: false is faster"
    needed = round(batch * first / (plain - quick))
    pays = "pays" if needed <= images else "is too few for it: training.compile: false is faster"
    return f"{text} and has paid after {needed:,} images; this run of {images:,} {pays}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
