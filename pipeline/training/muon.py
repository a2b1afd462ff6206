"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal, beside Adam.

Matrices of linear layers and convolutions (flattened to one row for each output) move by Muon, all
else (biases, norms, embeddings, a learnt weighting) by Adam. Steps of matrices are scaled to the
size of Adam's (Liu et al. 2025, arXiv 2502.16982, 0.2 sqrt(max(rows, columns))), so that one
learning rate and one weight decay serve both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.optim import Adam


class Muon:
    """torch.optim.Muon for the matrices, `Adam` for the rest, behind the interface of `Adam`."""

    def __init__(
        self,
        network: nn.Module,
        params: Iterable[nn.Parameter],
        adam: Mapping[str, Any],
        momentum: float,
    ) -> None:
        layers = (m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        params, matrices = list(params), {id(layer.weight) for layer in layers}
        self._live = [p for p in params if id(p) in matrices]
        self._adam = Adam([p for p in params if id(p) not in matrices], **adam)
        # Leaves of their own on the same memory: torch's takes none but matrices.
        self._own = [nn.Parameter(_matrix(p.detach(), p), requires_grad=False) for p in self._live]
        self._muon = torch.optim.Muon(
            self._own,
            weight_decay=adam["weight_decay"],
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        self._buffers = [torch.zeros_like(p) for p in self._own]
        for own, buffer in zip(self._own, self._buffers, strict=True):
            self._muon.state[own]["momentum_buffer"] = buffer
        self.learning_rate, self.beta1 = self._adam.learning_rate, self._adam.beta1

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for own, live in zip(self._own, self._live, strict=True):
            own.grad = None if live.grad is None else _matrix(live.grad, live)
        for group in self._muon.param_groups:
            group["lr"] = self.learning_rate
        self._muon.step()
        self._adam.learning_rate, self._adam.beta1 = self.learning_rate, self.beta1
        self._adam.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in (*self._own, *self._live):
            p.grad = None
        self._adam.zero_grad()

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Momentum of the matrices, and the state of `Adam`; the tensors themselves."""
        return {"momentum": self._buffers, **self._adam.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, list[Tensor]]) -> None:
        """Raises ValueError if the state is that of other parameters."""
        if [t.shape for t in state["momentum"]] != [t.shape for t in self._buffers]:
            raise ValueError("the stored optimizer state is of other parameters")
        self._adam.load_state_dict({k: v for k, v in state.items() if k != "momentum"})
        for target, source in zip(self._buffers, state["momentum"], strict=True):
            target.copy_(source)


def _matrix(values: Tensor, weight: Tensor) -> Tensor:
    """Values of a weight (itself, or its gradient) as a matrix, in the order of its memory.

    Of the weight itself on the same memory.
    """
    if weight.ndim == 4 and not weight.is_contiguous():  # channels-last
        values = values.permute(0, 2, 3, 1)
    return values.reshape(len(values), -1)
