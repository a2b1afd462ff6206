"""What an expert's training makes small: the weighted error of a network's answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.noise import process
from pipeline.training.draws import Batch
from pipeline.training.loss import Uncertainty, weight

if TYPE_CHECKING:
    from pipeline.specs import ExpertSpec


class Objective:
    """The loss of a spec's network, called as `forward` (it may be compiled).

    guide: the frozen parent that answers are held to, or None. uncertainty: the learned weighting,
    which is trained along, or None. auxiliary: a term beside the error, or None.
    """

    def __init__(
        self,
        spec: ExpertSpec,
        forward: Callable[..., Tensor],
        guide: nn.Module | None,
        uncertainty: Uncertainty | None,
        device: torch.device,
        auxiliary: Callable[..., Tensor] | None = None,
    ):
        self.forward, self.guide, self.uncertainty = forward, guide, uncertainty
        self.auxiliary = auxiliary
        self.prediction, self.device = spec.prediction, device
        self.consistency = spec.decouple.consistency if spec.decouple else 0.0
        self.bfloat16 = spec.training.precision == "bfloat16"
        self.weighting = spec.training.weighting
        self.plain = self.weighting.kind in ("uniform", "uncertainty")

    def __call__(self, batch: Batch) -> Tensor:
        """Mean loss of a batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            output = self.forward(*batch.inputs)
            answer = None if self.guide is None else self.guide(*batch.inputs)
        loss = self._error(output, batch)
        if self.auxiliary is not None:
            loss = loss + self.auxiliary(output, batch, self._weighted)
        if answer is None:
            return loss
        kept = functional.mse_loss(output.float(), answer.float())
        return loss + self.consistency * kept

    def _error(self, output: Tensor, batch: Batch) -> Tensor:
        if self.plain and self.uncertainty is None and batch.correction is None:
            return functional.mse_loss(output.float(), batch.wanted)
        if self.uncertainty is None:
            return self._weighted(output, batch.wanted, batch).mean()
        error, log_snr = process.squared_error(output, batch.wanted), batch.log_snr
        if not isinstance(log_snr, Tensor):  # one state
            log_snr = torch.full((1,), log_snr, device=self.device)
        error = self.uncertainty.loss(error, log_snr)
        if batch.correction is not None:
            error = error * batch.correction
        return error.mean()

    def _weighted(self, output: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
        """The error of each answer, [N], with the weights that are given."""
        error = process.squared_error(output, wanted)
        if not self.plain:
            error = error * weight(self.weighting, batch.log_snr, self.prediction)
        return error if batch.correction is None else error * batch.correction
