"""Specs of jobs for tests that run one alone: small, and with what a test changes."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from pipeline.networks.build import network_of
from pipeline.specs import DenoiserSpec, ExpertSpec, NetworkSpec

SMALL = {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1}


def block(form: Any, values: Any) -> Any:
    """A block of params.yaml, or one of several forms of it."""
    return TypeAdapter(form).validate_python(values)


def network_spec(
    settings: dict[str, Any] = SMALL,
    *,
    channels_in: int = 2,
    resolution: int = 8,
    classes: int = 0,
    conditioning: str = "state",
    interval_bounds: list[float] = (),
) -> NetworkSpec:
    return NetworkSpec(
        network=settings,
        channels=channels_in,
        resolution=resolution,
        classes=classes,
        conditioning=conditioning,
        interval_bounds=list(interval_bounds),
    )


def build_network(settings: dict[str, Any] = SMALL, seed: int = 0, device: str = "cpu", **options):
    return network_of(network_spec(settings, **options), seed, device)


def denoiser_spec(**changes: Any) -> DenoiserSpec:
    """A network for 4 x 4 pixels."""
    base = {
        "network": SMALL | {"multipliers": [1]},
        "conditioning": "state",
        "channels": 1,
        "resolution": 4,
        "classes": 0,
        "prediction": "v",
        "continuous": False,
    }
    return DenoiserSpec(**base | changes)


TRAINING = {
    "batch": 8,
    "learning_rate": 0.01,
    "warmup": 16,
    "ema_halflife": 100,
}


def expert_spec(**changes: Any) -> ExpertSpec:
    """An expert of three states, for 8 x 8 pixels; `training` changes key by key."""
    base = {
        "network": SMALL,
        "conditioning": "state",
        "channels": 1,
        "resolution": 8,
        "classes": 0,
        "log_snr": [4.0, 0.0, -4.0],
        "continuous": False,
        "prediction": "v",
        "curriculum": {"form": {"kind": "uniform"}},
        "pairing": {"method": "independent"},
        "noise_key": 1,
        "stream_key": 2,
        "start_key": 3,
        "images": 212,  # the last batch is short
        "snapshots": [100, 212],
        "latents": [],
        "code": "",
    }
    training = TRAINING | changes.pop("training", {})
    return ExpertSpec(**base | changes, training=training)
