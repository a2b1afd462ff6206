"""What the training of an expert holds on a GPU, told without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.nn.functional import mse_loss
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pipeline.data.latents import RESIDENT_BYTES
from pipeline.networks.build import count_parameters, network_of
from pipeline.networks.multi_decoder import MultiDecoder

if TYPE_CHECKING:
    from pipeline.specs import ExpertSpec

WEIGHT_BYTES = 4
# What autocast computes in float32 on a GPU, and in bfloat16 on a CPU: there it is done by hand.
EXACT_ON_A_GPU = {"group_norm", "layer_norm", "rms_norm", "softmax"}


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step holds, as if at once: activations go while gradients come.

    weights: of the network, and of a parent that it is held to. gradients: with `shards` also the
    sums of the tree's branches. moments: Adam's two. averages: of the weights. activations: what
    the forward pass of a shard keeps for the backward one; None where the network cannot be laid
    out without values. rows: of the dataset, where it stays on the GPU.
    """

    weights: int
    gradients: int
    moments: int
    averages: int
    activations: int | None
    rows: int

    @property
    def total(self) -> int:
        """Without the workspaces of cuDNN and what the allocator cannot use."""
        parts = (self.weights, self.gradients, self.moments, self.averages, self.rows)
        return sum(parts) + (self.activations or 0)


def training_memory(spec: ExpertSpec, row_bytes: int, root: Path = Path()) -> Memory:
    """Memory of a spec's training. row_bytes: of all rows; root: where files of networks are."""
    training = spec.training
    network = network_of(spec, device="meta", root=root)
    own = WEIGHT_BYTES * sum(p.numel() for p in network.parameters())
    trained = WEIGHT_BYTES * count_parameters(network)
    held_to = spec.decouple is not None and bool(spec.decouple.consistency)
    # Of S shards the tree holds at most one sum for each height, besides a shard's own gradients.
    sums = training.shards.bit_length() if training.shards > 1 else 0
    return Memory(
        weights=own * (1 + held_to),
        gradients=trained * (1 + sums),
        moments=2 * trained,
        averages=own * (bool(training.ema_halflife) + len(training.power_ema)),
        activations=_activations(spec, root),
        rows=row_bytes if row_bytes <= RESIDENT_BYTES else 0,
    )


def _activations(spec: ExpertSpec, root: Path) -> int | None:
    bfloat16 = spec.training.precision == "bfloat16"
    try:
        return saved_bytes(spec, spec.training.batch // spec.training.shards, bfloat16, root)
    except Exception:  # of a module of one's own: what it does is its own matter
        if spec.network.kind in ("module", "diffusers"):
            return None
        raise


def saved_bytes(
    spec: ExpertSpec, images: int, bfloat16: bool, root: Path = Path(), as_on_a_gpu: bool = True
) -> int:
    """Bytes that the forward pass for some images keeps for the backward one, weights apart.

    Counted by running it on tensors that have shapes and no values. as_on_a_gpu: with the norms in
    float32, as CUDA's autocast has them. Of several decoders, as if all images went to the one that
    keeps most.
    """
    network = network_of(spec, device="meta", root=root).train()
    decoders = len(network.decoders) if isinstance(network, MultiDecoder) else 0
    choices = [{"interval": number} for number in range(decoders)] or [{}]
    return max(_saved(network, spec, images, bfloat16, as_on_a_gpu, said) for said in choices)


def _saved(
    network: torch.nn.Module,
    spec: ExpertSpec,
    images: int,
    bfloat16: bool,
    as_on_a_gpu: bool,
    said: dict[str, int],
) -> int:
    kept: dict[int, Any] = {}  # storages, each once, and alive: another could take its place

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    def like(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(
            tensor.shape, dtype=tensor.dtype, device="cpu", requires_grad=tensor.requires_grad
        )

    with FakeTensorMode():
        named = [*network.named_parameters(), *network.named_buffers()]
        weights = {name: like(tensor) for name, tensor in named}
        x = torch.empty(images, spec.channels, spec.resolution, spec.resolution)
        level = torch.zeros(images) if spec.conditioning == "state" else None
        labels = torch.zeros(images, dtype=torch.int64) if spec.classes else None
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), _Norms(as_on_a_gpu):
                answer = functional_call(network, weights, (x, level, labels), said)
            mse_loss(answer.float(), torch.empty_like(x))
        own = {tensor.untyped_storage()._cdata for tensor in weights.values()}
        return sum(storage.nbytes() for data, storage in kept.items() if data not in own)


class _Norms(TorchFunctionMode):
    """Within autocast, norms are computed in float32."""

    def __init__(self, exact: bool):
        super().__init__()
        self.exact = exact

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.exact and getattr(func, "__name__", "") in EXACT_ON_A_GPU:
            args, kwargs = tree_map(_exact, (args, kwargs))
        return func(*args, **kwargs)


def _exact(value: Any) -> Any:
    half = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.float() if half else value
