"""One shared encoder and a decoder for each stretch of the time axis, against its controls.

`python benchmarks/multistage.py` trains every arm with three seeds on Fashion-MNIST latents at
(nearly) equal training FLOPs and writes benchmarks/results/multistage.json. Run it again to go on
where it was interrupted.
"""

from typing import Any

import experiment
import fashion
from experiment import curve, summarise

IMAGES = 16_000
DENOISER = {"kind": "optimal-denoiser", "draws": 2000, "rows": 20_000, "eta": 0.1}
SHARED = {"channels": 16, "multipliers": [1, 2], "blocks": 1}


def joint(widths: list[int], partition: dict[str, Any], **more: Any) -> dict[str, Any]:
    network = {"kind": "multi-decoder", "decoder_channels": widths, **SHARED}
    return {"network": network, "partition": partition, **more}


EQUAL = {"curriculum": {"kind": "per-interval"}}
ARMS: dict[str, dict[str, Any]] = {
    "unified": {},
    "unified-wider": {"network": {"channels": 20}, "training": {"images": 10_500}},
    "unified-same-density": {"curriculum": {"kind": "per-interval", "partition": DENOISER}},
    "equal-widths": joint([16, 16, 16], DENOISER),
    "equal-widths-equal-density": joint([16, 16, 16], DENOISER, **EQUAL),
    "tailored": joint([20, 12, 4], DENOISER),
    "tailored-uniform": joint([20, 12, 4], {"kind": "uniform", "intervals": 3}),
    "tailored-snr": joint([20, 12, 4], {"kind": "snr", "intervals": 3}),
    "separate": {"partition": DENOISER},
    # The remedy for the loss at small budgets: decoders that start from a trained one.
    "warm-started": joint(
        [16, 16, 16], DENOISER, training={"parent": "half", "images": IMAGES // 2, "milestones": []}
    ),
    "half": {"training": {"images": IMAGES // 2, "milestones": []}},
    "branched": joint(
        [16, 16, 16],
        DENOISER,
        training={
            "parent": "half",
            "train": "decoders",
            "images": IMAGES // 2,
            "milestones": [],
        },
    ),
}


def main() -> None:
    done = experiment.run("multistage", fashion.params(ARMS, images=IMAGES, milestones=[8_000]))
    runs = done.seeds()
    rows, headline = [], {}
    for arm, own in runs.items():
        row = {"arm": arm}
        for key in ("fid", "precision", "recall", "train_flops", "parameters"):
            row[key] = summarise([run[key] for run in own.values()])
        faster = [experiment.s_compute(runs["unified"][seed], run) for seed, run in own.items()]
        row["mflop_per_sample"] = summarise([run["sample_flops"] / 1e6 for run in own.values()])
        row["flops_speedup"] = summarise(faster)
        rows.append(row)
        headline[f"fid_{arm}"] = round(row["fid"]["mean"], 3)
    experiment.show(rows)
    shown = {arm: [list(map(float, c)) for c in curve(own[0])] for arm, own in runs.items()}
    experiment.write(done, rows, headline, fashion.dataset() | {"curves_seed_0": shown})


if __name__ == "__main__":
    main()
