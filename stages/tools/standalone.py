"""The part of an exported folder that runs without tspace: `model/` and `sample.py`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.plan.job import BLOCKS
from pipeline.sampling.clusters import router_spec
from pipeline.sampling.exported import Drawing
from pipeline.sampling.mixture import network_spec
from pipeline.sampling.params import Walk
from pipeline.specs import NetworkSpec, as_states
from pipeline.store.bundle import bundle
from pipeline.store.files import write_json, write_text

CODE = "model"
ENTRY = "pipeline.sampling.standalone"
AUTOENCODER = "pipeline.networks.autoencoder:Autoencoder"
TYPES = (*(f"pipeline.{block}.params" for block in BLOCKS), "pipeline.block", "pipeline.specs")
SPEC = [key for key in NetworkSpec.model_fields if key != "network"]
# There are no arrays of numpy in a bundle.
INSTEAD = {
    "pipeline.noise.philox:_kind": """\
def _kind(out):
    \"\"\"float64 and int64 to view as, and the square root.\"\"\"
    import torch

    return torch.float64, torch.int64, torch.sqrt
"""
}

SAMPLE = '''\
"""Draws from the model in this folder: python sample.py [-n 64] [--seed 0] [--out samples.png]"""

import argparse
import struct
import sys
import zlib
from pathlib import Path

import torch
from model import load

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("-n", type=int, default=64, help="number of samples")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, default=Path("samples.png"), help="a .png or an .npz file")
options = parser.parse_args()
if options.n < 1 or options.seed < 0 or options.out.suffix not in (".png", ".npz"):
    parser.error("-n is 1 or more, --seed 0 or more, and --out a .png or an .npz file")

try:
    model = load("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = model.sample(range(options.n), seed=options.seed)  # uint8 [N, C, H, W]
except (OSError, ValueError) as e:
    sys.exit(str(e))


def png(sheet):
    """A PNG file of pixels uint8 [H, W, 1 or 3]."""
    height, width, channels = sheet.shape
    rows = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), sheet.reshape(height, -1)], 1)
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    data = zlib.compress(bytes(rows.flatten().tolist()))
    found = b"\\x89PNG\\r\\n\\x1a\\n"
    for name, data in ((b"IHDR", head), (b"IDAT", data), (b"IEND", b"")):
        found += struct.pack(">I", len(data)) + name + data
        found += struct.pack(">I", zlib.crc32(name + data))
    return found


options.out.parent.mkdir(parents=True, exist_ok=True)
if options.out.suffix == ".npz":  # arr_0: images [N, H, W, C]; arr_1: their labels, if any
    try:
        import numpy as np
    except ModuleNotFoundError:
        sys.exit("an .npz file needs numpy: pip install numpy, or write a .png")
    np.savez(options.out, images.permute(0, 2, 3, 1), *([] if labels is None else [labels.cpu()]))
else:
    columns = max(1, round(options.n**0.5))
    rows = -(-options.n // columns)
    _, channels, height, width = images.shape
    cells = torch.full((rows * columns, channels, height, width), 255, dtype=torch.uint8)
    cells[: options.n] = images
    sheet = cells.reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    options.out.write_bytes(png(sheet.reshape(rows * height, columns * width, channels)))
print(f"{options.n} samples, seed {options.seed}: {options.out}")
'''


def standalone(model: Mapping[str, Any], drawing: Drawing, folder: Path) -> None:
    """Write `model/` and `sample.py` to a folder that has the files of `model` (model.json)."""
    mixtures = [mixture for mixture in (model["mixture"], drawing.guide) if mixture]
    networks = [_networks(mixture, model["files"]) for mixture in mixtures]
    sampling = drawing.sampling
    settings = {
        "recipe": model["recipe"],
        "classes": model["classes"],
        "networks": networks[0],
        "guide": networks[1] if len(networks) > 1 else None,
        "states": drawing.states,
        "sampler": {
            "made_by": _short(sampling.made_by),
            "arguments": sampling.arguments(*Walk.model_fields),
        },
        "guidance": sampling.guidance,
        "interval": drawing.led and drawing.led.interval,
        "clip": sampling.clip,
        "batch": drawing.batch,
        "class_counts": drawing.class_counts,
    }
    makers = {sampling.made_by}
    for mixture in mixtures:
        for expert in mixture["experts"]:
            makers |= set(network_spec(mixture | expert).network.makers)
        makers |= set(router_spec(mixture).network.makers) if "router" in mixture else set()
        makers |= {AUTOENCODER} if mixture["decoder"] else set()
    files = bundle(ENTRY, *sorted(makers), apart=TYPES, instead=INSTEAD)
    (folder / CODE).mkdir()
    for name, text in files.items():
        write_text(folder / CODE / name, text)
    write_json(folder / CODE / "settings.json", settings)
    write_text(folder / "sample.py", SAMPLE)


def borders_of(mixture: Mapping[str, Any]) -> list[float]:
    """Log-SNRs between the experts of a mixture, cleanest first: halfway, as `Mixture` has them."""
    states = [float(value) for value in mixture["log_snr"]]
    experts = [e for e in mixture["experts"] if not e.get("cluster")]  # all clusters have the same
    return [(states[a["last"]] + states[b["first"]]) / 2 for a, b in pairwise(experts)]


def _networks(mixture: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
    """What `standalone.Networks` is told of a mixture."""

    def placed(member: Mapping[str, Any]) -> str:
        return files[f"{member['entry']}/{member['file']}"]["path"]

    states = [float(value) for value in mixture["log_snr"]]

    def told(part: Mapping[str, Any], spec: NetworkSpec) -> dict[str, Any]:
        return {
            "file": placed(part),
            "made_by": [_short(maker) for maker in spec.network.makers],
            "network": spec.network.arguments(),
            "spec": {key: getattr(spec, key) for key in SPEC},
        }

    experts = []
    for expert in mixture["experts"]:
        alone = expert["conditioning"] == "none"
        only = as_states([states[expert["first"]]])[0] if alone else None
        experts.append(told(expert, network_spec(mixture | expert)) | {"only": only})
    router = mixture.get("router")
    return {
        **{key: mixture[key] for key in ("prediction", "channels", "resolution", "classes")},
        **{key: mixture[key] for key in ("shift", "scale")},
        "borders": as_states(borders_of(mixture)),
        "means": mixture["terminal"] and placed(mixture["terminal"]),
        "decoder": mixture["decoder"] and str(Path(placed(mixture["decoder"])).parent),
        "files": {known["path"]: known["sha256"] for known in files.values()},
        "experts": experts,
        "router": router and told(router, router_spec(mixture)),
        "top": mixture.get("top"),
    }


def _short(place: str) -> str:
    """`module:name` without the packages that the module is in."""
    return place[place.rindex(".") + 1 :]
