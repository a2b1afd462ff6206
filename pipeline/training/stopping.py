"""Early stopping: an expert's training ends at a snapshot, once later ones no longer gain.

What gains is the loss on held-out images, so it ends as a function of numbers that are recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.data.latents import Latents
from pipeline.noise.params import Independent
from pipeline.noise.philox import derive_key
from pipeline.training.draws import Draws
from pipeline.training.objective import Objective
from pipeline.training.params import Stop

if TYPE_CHECKING:
    from pipeline.specs import ExpertSpec

MOST = 1024  # held-out images, each with one noise at one level
TOGETHER = 256


class HeldOutLoss:
    """The loss of an expert on held-out images: always the same images, noises and levels.

    Levels follow the density that training ends with (of a policy, the even one it begins with),
    weights are those of training (with those that are learnt: none). network: whose answers are
    meant; not trained by this.
    """

    def __init__(self, spec: ExpertSpec, latents: Latents, network: nn.Module):
        count = min(MOST, len(latents))
        apart = {"noise_key": derive_key(spec.noise_key, "held-out"), "images": count}
        own = spec.model_copy(update=apart | {"pairing": Independent(), "decouple": None})
        self.network, self.count = network, count
        self.draws = Draws(own, latents)
        self.drawn = self.draws.draw(count, 2 * count)  # behind its end: of the last density
        self.weights: dict[str, Tensor] = {}
        self.objective = Objective(own, self._answer, None, None, latents.device)

    def _answer(self, *inputs: Tensor | None) -> Tensor:
        return functional_call(self.network, self.weights, inputs)

    @torch.no_grad()
    def __call__(self, weights: dict[str, Tensor], layout: torch.memory_format) -> float:
        """Mean loss with these weights, by parameter name."""
        self.weights, training = weights, self.network.training
        self.network.eval()
        total = 0.0
        for start in range(0, self.count, TOGETHER):
            part = self.draws.read(self.drawn.part(start, start + TOGETHER))
            total += len(part.rows) * self.objective(self.draws.batch(part, layout)).item()
        self.network.train(training)
        return total / self.count


def gains_no_more(losses: Sequence[float], rule: Stop) -> bool:
    """Whether none of the last `patience` losses is below the best before by the share `gain`."""
    if len(losses) <= rule.patience:
        return False
    best = min(losses[: -rule.patience])
    return min(losses[-rule.patience :]) > best * (1 - rule.gain)
