"""What the training benchmarks share: Fashion-MNIST, small enough for two CPU cores.

The latents are 2x8x8 (a KL autoencoder trained here, of 32x32 images): eight times fewer values
than pixels, and the smallest setting in which the recipes differ by more than their seeds do.
"""

import copy
from typing import Any

from common import machine

SEEDS = [0, 1, 2]
SCHEDULE = {"kind": "log-snr", "states": 1000, "log_snr_max": 7.0, "log_snr_min": -7.0}

# Karras et al. 2022: the strong baseline of the benchmarks.
EDM: dict[str, Any] = {
    "schedule": {
        "kind": "edm", "states": "continuous", "sigma_min": 0.03, "sigma_max": 33.0,
        "sigma_data": 1.0,
    },
    "curriculum": {"kind": "edm-lognormal"},
    "training": {"weighting": {"kind": "edm"}},
}  # fmt: skip
# Immiscible diffusion at dataset level.
PAIRED = {"pairing": {"method": "assignment", "block": 1024, "sweeps": 8}}

BASE: dict[str, Any] = {
    "seed": 0,
    "data": {"source": "fashion-mnist", "resolution": 32, "holdout": 2048},
    "latent": {"encoder": "autoencoder", "channels": 2, "downsample": 4},
    "features": {"extractor": "classifier", "images": 20_000},
    "evaluate": {"samples": 1_000},
    "defaults": {
        "seeds": SEEDS,
        "network": {"kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1},
        "schedule": SCHEDULE,
        "prediction": "v",
        "training": {
            "images": 32_000,
            "batch": 64,
            "learning_rate": 0.002,
            "warmup": 2_000,
            "ema_halflife": 3_000,
            "milestones": [8_000, 16_000],
        },
        "sampling": {"kind": "ddim", "steps": 16},
    },
    "recipes": {},
}


def params(recipes: dict[str, Any], **training: Any) -> dict[str, Any]:
    """The shared settings with these recipes, and these settings of training for all of them."""
    found = copy.deepcopy(BASE)
    found["defaults"]["training"] |= training
    found["recipes"] = recipes
    return found


def dataset() -> dict[str, Any]:
    """The machine and the setting, for the result file."""
    return machine() | {key: BASE[key] for key in ("data", "latent", "defaults")}
