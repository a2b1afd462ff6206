"""States drawn by a policy that is learnt along: `curriculum: {kind: adaptive}`.

Kim, Ki, Shim & Lee 2025 (arXiv 2411.09998): a policy pi(t | x_0) gives each clean image a Beta
distribution of its place t on the time axis, from 0, cleanest, to 1. Now and then one measures how
much a training step lowered the loss at noise levels tau,

    delta_tau = L_tau(before the step) - L_tau(behind it),

L_tau being the terms of the variational bound, and moves the policy by REINFORCE along the gradient
of E[sum of delta_tau] + entropy * H(pi). The sum over all levels is too dear, so it goes over few,
those whose delta explains the whole sum best in a queue of recent measurements at all of them.

A reconstruction from the paper's formulas and the constants of its code. These are theirs: the Beta
distribution; the reward of an image, its own delta in bits a value, with noise that is not trained
on; three levels, chosen by a queue of 20 measurements on one image of a batch; every 40 steps; the
entropy's weight, the policy's learning rate and clipping; that the loss has no weights for the
density. Choices made here:

* the policy: a perceptron on the image, averaged to `SIDE` x `SIDE`. It starts as the uniform
  density, and a and b stay within exp(+-`REACH`), so that no level is ever lost;
* less noise in what it learns from: the noise is the same before and behind the step, rewards are
  less the batch's mean (which leaves the expected gradient its direction), and the entropy has its
  own gradient;
* the draws of a batch are independent and not stratified as those of other curricula are. Strata
  would nearly fix how often each level comes, and the sum of grad log pi over a batch with it;
* a level explains the sum by the square of its correlation with it, which orders levels as the F
  of a regression on that level alone does. Before `LEAST` measurements the levels are even;
* all levels are `nodes` of the axis instead of 1000 states, and each term is 1/2 |eps error|^2
  times the log-SNR between neighbouring nodes, the bound's integral in log-SNR (Kingma et al.
  2021). So a node weighs as much against the entropy as all states that it stands for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import special
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional

from pipeline.networks.initial import made
from pipeline.noise import philox, process
from pipeline.training.draws import Drawn, Draws
from pipeline.training.loss import weight
from pipeline.training.optim import Adam
from pipeline.training.params import PlainWeighting

if TYPE_CHECKING:
    from pipeline.specs import ExpertSpec

SIDE, HIDDEN = 8, 64  # of what the policy sees, and of its inner layer
REACH = 2.0  # a and b lie between e^-2 and e^2
EDGE = 1e-9  # of the time axis, where a density may be infinite
CLIP = 1.0  # norm of the policy's gradient
QUEUE, LEAST = 20, 10  # measurements at all nodes that are kept, and that a choice needs
BETAS = (0.9, 0.999)  # of the policy's Adam


class Policy(nn.Module):
    """pi(t | x_0): the Beta distribution of each image [N, C, H, W], in float64. Uniform at first.

    shape: of an image, (C, H, W). flops: forward, an image.
    """

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.sides = [min(SIDE, side) for side in shape[1:]]
        values = shape[0] * math.prod(self.sides)
        self.inner, self.last = nn.Linear(values, HIDDEN), nn.Linear(HIDDEN, 2)
        self.last.zero_init = True
        self.flops = 2 * HIDDEN * (values + 2)

    def forward(self, z: Tensor) -> Beta:
        small = functional.adaptive_avg_pool2d(z, self.sides).flatten(1)
        found = self.last(functional.silu(self.inner(small))).double()
        a, b = torch.exp(REACH * torch.tanh(found / REACH)).unbind(1)
        return Beta(a, b, validate_args=False)


class Adaptive:
    """A policy, what it draws, and how it learns; on the host, but for the losses it learns from.

    network: that which is trained, asked in `layout`. Other arguments: keys of the block. What it
    draws depends on all that it has learnt, so a batch cannot be drawn before the step that comes
    before it is done, and its state belongs to that of the training.
    """

    def __init__(
        self,
        spec: ExpertSpec,
        draws: Draws,
        network: nn.Module,
        layout: torch.memory_format,
        *,
        every: int,
        selected: int,
        nodes: int,
        entropy: float,
        policy_rate: float,
    ):
        self.draws, self.network, self.layout = draws, network, layout
        self.every, self.entropy, self.batch = every, entropy, spec.training.batch
        self.prediction = spec.prediction
        self.key = philox.derive_key(spec.stream_key, "policy")
        axis, latents = draws.curriculum, draws.latents
        count = nodes if axis.continuous else min(nodes, len(axis))
        log_snr = axis.draw((np.arange(count) + 0.5) / count, 0.0)[1]
        there = draws.stream.there
        self.nodes = there(log_snr.astype(np.float32))
        bits = -np.gradient(log_snr) / (2 * math.log(2))  # a value, by the mean error of eps
        self.bits = there(bits.astype(np.float32))
        self.selected, self.queue = min(selected, count), []
        seed = philox.derive_key(spec.start_key, "policy")
        self.policy = made(lambda: Policy(latents.shape), seed, "cpu")
        self.optimizer = Adam(self.policy.parameters(), policy_rate, BETAS, 0.0)
        self.drawn: tuple[Tensor, Tensor] | None = None

    def __call__(self, u: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Places on the time axis, float64 [n] in (0, 1), by the inverse CDF at u [n] in (0, 1).

        rows: of the images, int64 [n].
        """
        z = self._images(rows)
        with torch.no_grad():
            found = self.policy(z)
        a, b = found.concentration1.numpy(), found.concentration0.numpy()
        t = np.clip(special.betaincinv(a, b, u), EDGE, 1 - EDGE)
        self.drawn = z, torch.from_numpy(t)
        return t

    def _images(self, rows: np.ndarray) -> Tensor:
        """Clean rows in the networks' scale, float32 [n, C, H, W]; of a Gaussian its mean."""
        latents = self.draws.latents
        raw = torch.from_numpy(latents.raw(rows)[:, : latents.shape[0]]).float()
        return (raw - torch.tensor(latents.shift).reshape(-1, 1, 1)) / latents.scale

    def watch(self, step: Callable[[], Any], drawn: Drawn, start: int) -> None:
        """Take a training step, on what was drawn last, from image `start` on; learn if it is time.

        Only from whole batches.
        """
        stop = start + len(drawn.rows)
        if len(drawn.rows) < self.batch or start // self.every == stop // self.every:
            step()
            return
        training, chosen = self.network.training, self.chosen()
        self.network.eval()
        batch = self.draws.batch(drawn, self.layout)
        ids = self.draws.stream.there(np.arange(start, stop))
        eps = philox.normal(self.key, 0, ids, batch.clean.shape[1:]) * self.draws.pairing.scale
        images = (batch.clean, eps, batch.inputs[2])
        before = self._losses(*images, chosen)
        step()
        delta = (before - self._losses(*images, chosen)).cpu().double()
        self.network.train(training)
        if not delta.isfinite().all():  # the training will say so itself
            return
        own, whole = delta[: -len(self.nodes)], delta[-len(self.nodes) :]
        self.learn(*self.drawn, own.reshape(len(chosen), -1).sum(0))
        self.queue = [*self.queue, whole.tolist()][-QUEUE:]

    @torch.no_grad()
    def _losses(self, z: Tensor, eps: Tensor, labels: Tensor | None, chosen: list[int]) -> Tensor:
        """Terms of the bound: of all images at the chosen nodes, then of the first at all nodes."""
        n, count = len(z), len(self.nodes)
        asked: list[tuple[Sequence[int], Sequence[int]]] = [(range(n), [k] * n) for k in chosen]
        for a in range(0, count, n):
            part = range(a, min(a + n, count))
            asked.append(([0] * len(part), part))
        return torch.cat([self._terms(z, eps, labels, *pair) for pair in asked])

    def _terms(
        self,
        z: Tensor,
        eps: Tensor,
        labels: Tensor | None,
        images: Sequence[int],
        nodes: Sequence[int],
    ) -> Tensor:
        """Terms of the bound of some images at a node each, [len(images)] in bits a value."""
        image, node = (self.draws.stream.there(np.array(i)) for i in (images, nodes))
        z, eps, log_snr = z[image], eps[image], self.nodes[node]
        x = process.add_noise(z, eps, log_snr).contiguous(memory_format=self.layout)
        output = self.network(x, log_snr, None if labels is None else labels[image])
        error = process.squared_error(output, process.target(self.prediction, z, eps, log_snr))
        as_eps = weight(PlainWeighting(kind="eps"), log_snr, self.prediction)
        return error * as_eps * self.bits[node]

    def learn(self, z: Tensor, t: Tensor, rewards: Tensor) -> None:
        """One step of the policy: images [N, C, H, W], their places and rewards, float64 [N]."""
        advantage = rewards - rewards.mean()
        found = self.policy(z)
        gain = (advantage * found.log_prob(t)).mean() + self.entropy * found.entropy().mean()
        (-gain).backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def chosen(self) -> list[int]:
        """The nodes that explain the sum over all nodes best."""
        count = len(self.nodes)
        if len(self.queue) < LEAST:
            return [int((i + 0.5) * count / self.selected) for i in range(self.selected)]
        found = np.array(self.queue)
        found -= found.mean(0)
        whole, spread = found.sum(1), np.square(found).sum(0)
        explained = np.divide(
            np.square(whole @ found), spread, out=np.zeros(count), where=spread > 0
        )
        return sorted(np.argsort(-explained, kind="stable")[: self.selected].tolist())

    def state_dict(self) -> dict[str, Any]:
        state = {"policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state | {"queue": self.queue}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.queue = state["queue"]

    @staticmethod
    def flops(spec: ExpertSpec, images: int, forward: float) -> float:
        """FLOPs of a run of so many images beside those of its own passes.

        forward: of the network, an image.
        """
        block, batch = spec.curriculum.learnt, spec.training.batch
        with torch.device("meta"):
            policy = Policy((spec.channels, spec.resolution, spec.resolution)).flops
        nodes = block.nodes if spec.continuous else min(block.nodes, len(spec.log_snr))
        whole = images // batch
        times = min(whole, whole * batch // block.every)
        # Before and behind a step; a pass of the policy forward and backward is three forward.
        asked = 2 * (min(block.selected, nodes) * batch + nodes)
        return images * policy + times * (asked * forward + 3 * batch * policy)
