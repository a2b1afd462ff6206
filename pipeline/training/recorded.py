"""A training step's kernels launched at once, as a CUDA graph: the same bits, without the gaps.

A small network's kernels take less time than Python takes to launch them one by one. A graph holds
those of one forward and backward pass; its inputs are copied to the same place each time, and it
leaves the gradients in the same place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.training.draws import Batch

if TYPE_CHECKING:
    from pipeline.specs import ExpertSpec

ENABLED = True
WARM_UP = 3  # passes before the recording, in which libraries choose and load their kernels

Passes = Callable[[Batch, float], Tensor]


def can_be_recorded(spec: ExpertSpec, device: torch.device) -> bool:
    """Whether the passes of all whole batches are the same kernels on the same memory.

    Not where a network looks at values to choose what to compute, or where a term of the loss
    takes something from the host. Random numbers are the same ones: torch gives a graph its seed.
    """
    training = spec.training
    fixed = spec.network.fixed and training.auxiliary is None
    return ENABLED and device.type == "cuda" and fixed and training.batch % training.shards == 0


def recorded(passes: Passes, like: Batch, share: float, parameters: Iterable[Tensor]) -> Passes:
    """`passes`, which leaves the gradients of a batch's share and returns its loss, as a graph.

    It is for shares like that and for batches of the size of `like`. When another comes, the last
    of a run, the graph and its memory are let go, and from then on `passes` itself is called.
    """
    parameters = list(parameters)
    own = dataclasses.replace(
        like,
        inputs=tuple(None if value is None else value.clone() for value in like.inputs),
        wanted=like.wanted.clone(),
        log_snr=like.log_snr.clone() if isinstance(like.log_snr, Tensor) else like.log_snr,
        correction=None if like.correction is None else like.correction.clone(),
    )

    def forget() -> None:
        for p in parameters:
            p.grad = None

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            passes(own, share)
            forget()
    torch.cuda.current_stream().wait_stream(side)
    graph: torch.cuda.CUDAGraph | None = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = passes(own, share)
    gradients = [p.grad for p in parameters]
    forget()
    places = list(_given(own))

    def replayed(batch: Batch, of: float) -> Tensor:
        nonlocal graph, loss, gradients, places, own
        if graph is not None and (of != share or batch.wanted.shape != own.wanted.shape):
            graph = loss = gradients = places = own = None
            torch.cuda.empty_cache()
        if graph is None:
            return passes(batch, of)
        torch._foreach_copy_(places, list(_given(batch)))
        graph.replay()
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        return loss.clone()

    return replayed


def _given(batch: Batch) -> Iterator[Tensor]:
    """The tensors that a pass depends on."""
    for value in (*batch.inputs, batch.wanted, batch.log_snr, batch.correction):
        if isinstance(value, Tensor):
            yield value
