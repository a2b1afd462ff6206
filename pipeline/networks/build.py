"""From settings to networks, with their parameter and FLOP counts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.networks.multi_decoder import MultiDecoderUNet
from pipeline.networks.unet import Attention, Decoder, Encoder, UNet, check_size, initialise


def build_network(
    settings: Mapping[str, Any] | Any,
    *,
    channels_in: int,
    resolution: int | tuple[int, int],
    classes: int = 0,
    conditioning: str = "state",
    interval_bounds: Sequence[float] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A network by its settings (a mapping, or an object with attributes), initialised from `seed`.

    settings: `kind` `unet` or `multi-decoder`; `channels`, base width; `multipliers`, width of each
    level over it; `blocks`, residual blocks a level; optional `attention`, resolutions (of the
    longer side) with self-attention, `dropout`, and `projections` (see `Encoder`). A multi-decoder
    has the width of each decoder, cleanest interval first, in `decoder_channels`, and needs
    `interval_bounds`, the log-SNRs between the intervals, strictly descending.
    resolution: of the images, one side of a square or (height, width). classes: 0 for none.
    conditioning: `state`, or `none` for an expert of one state.

    No global generator is read or moved. On the device `meta` the network has no storage and no
    values. Raises ValueError for settings that fit neither each other nor the images.
    """
    kind, channels = _read(settings, "kind"), _read(settings, "channels")
    multipliers, blocks = _read(settings, "multipliers"), _read(settings, "blocks")
    attention, dropout = _read(settings, "attention", ()), _read(settings, "dropout", 0.0)
    if kind not in ("unet", "multi-decoder"):
        raise ValueError(f"network kind '{kind}' is unknown; use unet or multi-decoder")
    if conditioning not in ("state", "none"):
        raise ValueError(f"conditioning '{conditioning}' is unknown; use state or none")
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    check_size(height, width, 2 ** (len(multipliers) - 1))
    sides = [max(height, width) >> level for level in range(len(multipliers))]
    unknown = sorted(set(attention) - set(sides))
    if unknown:
        raise ValueError(f"attention: no level has resolution {unknown[0]}; there are {sides}")
    shape = {
        "attends": [side in attention for side in sides],
        "dropout": dropout,
        "projections": _read(settings, "projections", False),
    }

    with torch.device(device), _Undrawn():
        encoder = Encoder(
            channels_in,
            channels,
            multipliers,
            blocks,
            classes=classes,
            conditioned=conditioning == "state",
            **shape,
        )

        def decoder(own_channels: int) -> Decoder:
            return Decoder(encoder, channels_in, own_channels, multipliers, blocks, **shape)

        if kind == "unet":
            if interval_bounds is not None:
                raise ValueError("a unet has one decoder; interval_bounds are for a multi-decoder")
            network = UNet(encoder, decoder(channels))
        else:
            if interval_bounds is None or conditioning == "none":
                raise ValueError("a multi-decoder needs interval_bounds, and the state as input")
            decoders = [decoder(own) for own in _read(settings, "decoder_channels")]
            network = MultiDecoderUNet(encoder, decoders, interval_bounds)
    if torch.device(device).type != "meta":
        initialise(network, seed)
    return network


class _Undrawn(TorchFunctionMode):
    """Leaves out the weights that torch's modules draw for themselves.

    Building on `meta` would, too, but filling such a network imports torch's compiler: seconds, in
    every process that trains.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", "") == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def network_of(
    spec: Mapping[str, Any], seed: int = 0, device: torch.device | str = "cpu"
) -> nn.Module:
    """The network of an expert's spec or of a mixture's description (see `build_network`)."""
    return build_network(spec["network"], seed=seed, device=device, **_shape(spec))


def flops_of(spec: Mapping[str, Any], log_snr: float | None = None) -> float:
    """Forward FLOPs of that network for one image (a multiply-add is two).

    A multi-decoder's are those at `log_snr`, or without one the mean over its intervals, each
    counted once.
    """
    shape = _shape(spec)
    if spec["network"]["kind"] != "multi-decoder":
        return count_flops(spec["network"], **shape)
    bounds = shape["interval_bounds"]
    if log_snr is not None:
        own = [sum(log_snr < bound for bound in bounds)]
    else:
        own = range(len(bounds) + 1)
    counts = [count_flops(spec["network"], interval=k, **shape) for k in own]
    return sum(counts) / len(counts)


def _shape(spec: Mapping[str, Any]) -> dict[str, Any]:
    joint = spec["network"]["kind"] == "multi-decoder"
    return {
        "channels_in": spec["channels"],
        "resolution": spec["resolution"],
        "classes": spec["classes"],
        "conditioning": spec["conditioning"],
        "interval_bounds": spec["network"].get("interval_bounds", []) if joint else None,
    }


def start_from(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a network the weights of its parent, in place.

    Weights of the same name and shape are copied. Each decoder of a multi-decoder network takes
    those of the parent's only decoder. A decoder of another width keeps its own start: all it
    inherits is the encoder. Projections that the parent does not have stay the identity. Raises
    ValueError if the parent's encoder does not fit.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            given = weights.get(name)
            if given is None and name.startswith("decoders."):
                given = weights.get("decoder." + name.split(".", 2)[2])
            if given is not None and given.shape == parameter.shape:
                parameter.copy_(given)
            elif not name.startswith("decoders.") and not (
                given is None and ".projections." in name
            ):
                raise ValueError(f"{name} of the parent does not fit this network")


def _read(settings: Mapping[str, Any] | Any, name: str, *default: Any) -> Any:
    if isinstance(settings, Mapping):
        return settings.get(name, *default) if default else settings[name]
    return getattr(settings, name, *default)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def count_flops(
    settings: Mapping[str, Any] | Any,
    *,
    channels_in: int,
    resolution: int | tuple[int, int],
    classes: int = 0,
    conditioning: str = "state",
    interval_bounds: Sequence[float] | None = None,
    interval: int | None = None,
    batch: int = 1,
) -> int:
    """Forward FLOPs of a batch, a multiply-add being two; nothing is allocated or computed.

    Counted are convolutions, matrix products and attention; norms, activations and sums would add
    a few percent. Settings as in `build_network`; a multi-decoder has one count an
    interval, and `interval` says which. Raises ValueError as that does, and without an interval.
    """
    network = build_network(
        settings,
        channels_in=channels_in,
        resolution=resolution,
        classes=classes,
        conditioning=conditioning,
        interval_bounds=interval_bounds,
        device="meta",
    )
    decoder = getattr(network, "decoder", None)
    if isinstance(network, MultiDecoderUNet):
        if interval is None:
            raise ValueError("a multi-decoder has a FLOP count for each interval; name one")
        decoder = network.decoders[interval]
    encoder = network.encoder
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    levels = len(encoder.levels)
    # Modules by the level whose size their output has. Nothing is called: on `meta` that would
    # import torch's compiler, seconds in every process that trains.
    parts = [(0, encoder.input), (levels - 1, encoder.middle), (0, decoder.output)]
    parts += list(enumerate(encoder.levels)) + list(enumerate(encoder.downs, start=1))
    up = [*enumerate(decoder.levels), *enumerate(decoder.projections)]
    parts += [(levels - 1 - level, part) for level, part in up]
    parts += [(min(level, levels - 1), part) for level, part in enumerate(encoder.projections)]
    total = sum(_products(part, (height >> level) * (width >> level)) for level, part in parts)
    # One state and no class: the embedding is one row whatever the batch.
    rows = 1 if conditioning == "none" else batch
    embedding = [encoder.embedding, encoder.film, decoder.film]
    return batch * total + rows * sum(_products(part, 1) for part in embedding)


def _products(part: nn.Module, pixels: int) -> int:
    """FLOPs of a part's convolutions, matrix products and attention for so many output pixels."""
    total = 0
    for module in part.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            total += 2 * pixels * module.weight.numel()
        elif isinstance(module, Attention):  # scores and their use, each a matrix product
            total += 4 * module.project.in_features * pixels**2
    return total
