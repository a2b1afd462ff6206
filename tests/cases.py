"""What is trained on a pretended GPU and on a real one.

Of its own, for where the pretended one is known, torch takes it for the machine's.
"""

from pipeline.sampling.mixture import Mixture, describe, member
from tests.specs import SMALL
from tests.test_dit import TINY
from tests.test_shards import MULTI, MULTI_DIT
from tests.test_training import SHARES

ROWS, SIZE = 50, 8
STATES = [4.0, 0.0, -4.0]
CASES = {
    "states": {},
    "one state": {"log_snr": [0.5]},
    "one state, untold": {"log_snr": [0.5], "conditioning": "none"},
    "shares": {"curriculum": SHARES},
    "speed": {"curriculum": {"form": {"kind": "speed"}}},
    "learnt states": {"curriculum": {"form": {"kind": "adaptive"}}},
    "classes": {"classes": 3},
    "refreshed": {"pairing": {"method": "knn-l2", "candidates": 4, "refresh": 0.1}},
    "two decoders": MULTI,
    "shards": {"training": {"shards": 2, "clip": 1.0}},
    "decoders in shards": {**MULTI, "training": {"shards": 4}},
    "contrastive": {"classes": 3, "training": {"auxiliary": {"kind": "contrastive"}}},
    "dispersive": {"training": {"auxiliary": {"kind": "dispersive"}}},
    "aligned": {"training": {"auxiliary": {"kind": "repa"}}},
    "aligned transformer": {"network": TINY, "training": {"auxiliary": {"kind": "repa"}}},
    "dropout": {"network": SMALL | {"dropout": 0.1}},
    "averages": {"training": {"power_ema": [0.1]}},
    "transformer": {"network": TINY, "classes": 3},
    "transformer with all options": {
        "network": TINY | {"qk_norm": True, "swiglu": True, "rotary": True, "told": "timestep"}
    },
    "transformer in shards": {"network": TINY, "training": {"shards": 2, "clip": 1.0}},
    "transformer with tokens that skip": {
        "network": TINY | {"depth": 3, "routing": {"start": 1, "end": 1}, "rotary": True}
    },
    "transformer with two decoders": MULTI_DIT,
    "its decoders in shards": {**MULTI_DIT, "training": {"shards": 4}},
}
WEIGHTINGS = ["uniform", "v", "flow", "min-snr", "p2", "uncertainty"]


def mixture_on(device, spec, weights, states=STATES) -> Mixture:
    source = {"entry": "", "file": weights.name, "sha256": "0"}
    last = len(states) - 1
    described = describe(spec, states, [member(source, spec, 0, last)], [127.5], 73.9)
    return Mixture(described, lambda _: weights, device)
