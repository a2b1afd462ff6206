"""The optimizer, and learning-rate and momentum schedules as pure functions of images seen.

MDLRC (Xu et al. 2024, arXiv 2404.07946) is a reconstruction from the abstract, reviews and ports:
the momentum decays by the DEMON rule (Chen et al. 2019, arXiv 1910.04952),
beta_t = beta0 (1 - tau) / ((1 - beta0) + beta0 (1 - tau)), and the learning rate is compensated so
that (learning rate) * (1 - beta_t), the weight of the newest gradient in Adam, stays as it was:
(1 - beta0) / (1 - beta_t) = 1 - beta0 tau. Its control is `linear` with floor = 1 - beta0, the
same learning rates at constant momentum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.optim.adamw import adamw

EPS = 1e-8


class Adam:
    """Adam (Kingma & Ba 2015), with decoupled weight decay (AdamW, Loshchilov & Hutter 2019).

    The numbers are those of torch.optim.AdamW, and without decay those of torch.optim.Adam. This
    uses the functional form, since the classes import the compiler, which takes 2 seconds of CPU in
    every process that trains.
    `learning_rate` and `beta1` may be set before each step; its state holds neither.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        learning_rate: float,
        betas: Sequence[float],
        weight_decay: float,
    ) -> None:
        self.learning_rate = learning_rate
        self.beta1, self.beta2 = betas
        self.weight_decay = weight_decay
        self._params = list(params)
        # The fused step is 3 to 5 times faster than foreach on a CPU too, and its bits do not
        # depend on the number of threads. The two differ from each other in the last bits, so
        # which one runs is decided by the device alone.
        self._fused = all(p.device.type in ("cpu", "cuda") for p in self._params)
        self._first = [torch.zeros_like(p, requires_grad=False) for p in self._params]
        self._second = [torch.zeros_like(p, requires_grad=False) for p in self._params]
        self._steps = [
            torch.zeros((), device=p.device if self._fused else "cpu") for p in self._params
        ]

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        due = [i for i, p in enumerate(self._params) if p.grad is not None]
        adamw(
            [self._params[i] for i in due],
            [self._params[i].grad for i in due],
            [self._first[i] for i in due],
            [self._second[i] for i in due],
            [],
            [self._steps[i] for i in due],
            fused=self._fused,
            foreach=not self._fused,
            amsgrad=False,
            maximize=False,
            lr=self.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            weight_decay=self.weight_decay,
            eps=EPS,
        )

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self._params:
            p.grad = None

    def state_dict(self) -> dict[str, list[torch.Tensor]]:
        """Moments and step counts in the order of the parameters; the tensors themselves."""
        return {"first": self._first, "second": self._second, "steps": self._steps}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, list[torch.Tensor]]) -> None:
        """Raises ValueError if the state is that of other parameters."""
        for name, own in self.state_dict().items():
            stored = state[name]
            if [t.shape for t in stored] != [t.shape for t in own]:
                raise ValueError("the stored optimizer state is of other parameters")
            for target, source in zip(own, stored, strict=True):
                target.copy_(source)


def rate_and_momentum(
    kind: str,
    progress: float,
    images_seen: int,
    *,
    beta0: float,
    floor: float,
    reference_images: int | None,
    warmup_images: int,
) -> tuple[float, float]:
    """Factor on the learning rate, and Adam's beta1, for the step about to be taken.

    kind: as `training.decay`.
    progress: tau in [0, 1], the part of the run that is over.
    images_seen: images seen once this step is taken, so that a warm-up starts above zero.
    floor: the factor at the end of `linear` and `cosine`.
    reference_images: `inverse-sqrt` decays by sqrt(reference_images / images_seen) beyond it
        (EDM2, arXiv 2312.02696).
    warmup_images: the factor is multiplied by images_seen / warmup_images until it is reached.
    """
    factor, beta = 1.0, beta0
    if kind in ("mdlrc", "momentum-decay"):
        left = beta0 * (1 - progress)
        beta = left / ((1 - beta0) + left)
        if kind == "mdlrc":
            factor = (1 - beta0) / (1 - beta)
    elif kind == "linear":
        factor = 1 - (1 - floor) * progress
    elif kind == "cosine":
        factor = floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
    elif kind == "inverse-sqrt":
        factor = 1 / math.sqrt(max(images_seen / reference_images, 1))
    if images_seen < warmup_images:
        factor *= images_seen / warmup_images
    return factor, beta


def apply(optimizer: Adam, learning_rate: float, beta1: float) -> None:
    """Set the learning rate and beta1 of the next step, without waiting for the device.

    Adam corrects the bias of its first moment by the current beta1 ** step, which for a beta1 that
    falls over the run differs from the exact product of all beta1 only in the first ~100 steps.
    """
    optimizer.learning_rate = learning_rate
    optimizer.beta1 = beta1
