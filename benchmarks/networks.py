"""A transformer beside a U-Net at equal training FLOPs, flow matching, and each idea on the DiT.

`python benchmarks/networks.py` trains every arm with three seeds on Fashion-MNIST latents and
writes benchmarks/results/networks.json. The DiT has 0.33 million weights and the U-Net is that of
the other benchmarks; an image costs both nearly the same, and the U-Net sees a few more, so that
all arms have equal training FLOPs. Each kind of network and objective has its own learning rate,
chosen in the same way: one seed, a quarter of the images, the best with a worse one on either side
(`tuning_fid`). Run it again to go on where it was interrupted.

A row's `control` is the arm without the idea: `gain` is the control's FID over the arm's,
`s_compute` how many times fewer FLOPs the arm needs to equal FID (the worse of the two that both
end with), and `s_iterations` the same in images that one worker sees in a row.
"""

import sys
from dataclasses import dataclass
from typing import Any

import experiment
import fashion
from disentangled import RATES, best, few
from experiment import ratio_with_spread, s_compute, s_iterations, summarise
from fashion import EDM, PAIRED
from headline import over

BATCH = 32
IMAGES = 48_000  # of a DiT: 6.84 MFLOP each, forward
UNET_IMAGES = 51_268  # 6.40 MFLOP each
TRIED = range(2, 5)  # learning rates that are tried first

DIT = {"kind": "dit", "patch": 2, "depth": 4, "width": 64, "heads": 4}
# Two blocks that all noise levels share and two of each interval's own: as many for every image.
STAGES: dict[str, Any] = {
    "network": DIT | {"kind": "multi-dit", "depth": 2, "decoder_depths": [2, 2, 2]},
    "partition": {"kind": "optimal-denoiser", "eta": 0.1, "draws": 2_000, "rows": 20_000},
}
# Sixteen steps, as all arms have.
FLOW: dict[str, Any] = {
    "schedule": {"kind": "flow"},
    "prediction": "flow",
    "sampling": {"kind": "euler", "steps": 16},
}
FOUR = {"partition": {"kind": "uniform", "intervals": 4}}


@dataclass(frozen=True)
class Arm:
    """A recipe, and the arm that it is compared with."""

    kind: str  # arms of one kind share a learning rate, tuned on the first of them
    control: str | None
    recipe: dict[str, Any]
    scored: tuple[int, ...] = (2,)  # also after a half ... of its images


def dit(*blocks: dict[str, Any]) -> dict[str, Any]:
    """A recipe of the DiT with more blocks over it."""
    found: dict[str, Any] = {"network": DIT}
    for more in blocks:
        found = over(found, more)
    return found


ARMS = {
    "unet": Arm("unet", None, EDM, (4, 2)),
    "unet-flow": Arm("unet-flow", "unet", FLOW),
    "dit": Arm("dit", "unet", dit(EDM)),
    "dit-flow": Arm("dit-flow", "dit", dit(FLOW)),
    "dit-paired": Arm("dit", "dit", dit(EDM, PAIRED)),
    "dit-stages": Arm("stages", "dit", dit(EDM, STAGES)),
    "dit-even": Arm("even", "dit", dit({"schedule": fashion.SCHEDULE})),
    "dit-clts": Arm("even", "dit-even", dit({"curriculum": {"kind": "clts"}})),
    "dit-16": Arm("even", "dit-even", dit(few()), (4, 2)),
    # As many images in all as the one network for sixteen states.
    "dit-16-four": Arm("four", "dit-16", dit(few(), FOUR), (4, 2)),
}


def recipe(arm: Arm, rate: float, part: int = 1) -> dict[str, Any]:
    """An arm at a learning rate, for one in `part` of its images."""
    network = arm.recipe.get("network", {}).get("kind", "unet")
    images = (UNET_IMAGES if network == "unet" else IMAGES) // part
    training = {
        "images": images,
        "milestones": [images // n for n in arm.scored] if part == 1 else [],
        "learning_rate": rate,
        "experts_per_job": 4,
    }
    return over(arm.recipe, {"training": training})


def params(recipes: dict[str, Any]) -> dict[str, Any]:
    # Experts see few images each, so warm-up and average are short, for all arms alike.
    return fashion.params(recipes, batch=BATCH, warmup=500, ema_halflife=1_000)


def tuned() -> dict[str, dict[float, float]]:
    """For each kind of arm, each learning rate's FID at a quarter of the images."""
    first = {arm.kind: arm for arm in reversed(ARMS.values())}

    def score(wanted: list[tuple[str, int]]) -> dict[tuple[str, int], float]:
        recipes = {
            f"tune-{kind}-{place}": recipe(first[kind], RATES[place], 4) | {"seeds": [0]}
            for kind, place in wanted
        }
        runs = experiment.run("networks-tuning", params(recipes), workers=1).seeds()
        return {(kind, place): runs[f"tune-{kind}-{place}"][0]["fid"] for kind, place in wanted}

    found = experiment.bracket(score, first, TRIED, len(RATES))
    return {kind: {RATES[n]: fid for n, fid in fids.items()} for kind, fids in found.items()}


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)
    tuning = tuned()
    rates = {kind: best(fids) for kind, fids in tuning.items()}
    print(f"learning rates: {rates}")
    wanted = {name: recipe(arm, rates[arm.kind]) for name, arm in ARMS.items()}
    done = experiment.run("networks", params(wanted), workers=1)
    runs = done.seeds()
    rows, headline = [], {}
    for name, arm in ARMS.items():
        own = list(runs[name].values())
        row: dict[str, Any] = {"arm": name, "control": arm.control}
        for key in ("fid", "precision", "recall"):
            row[key] = summarise([run[key] for run in own])
        row |= {key: own[0][key] for key in ("images_seen", "train_flops", "parameters")}
        headline[f"fid_{name}"] = round(row["fid"]["mean"], 3)
        if arm.control:
            beside = list(runs[arm.control].values())
            pairs = list(zip(beside, own, strict=True))
            row["gain"] = ratio_with_spread([r["fid"] for r in beside], [r["fid"] for r in own])
            row["s_compute"] = summarise([s_compute(a, b, worse=True) for a, b in pairs])
            row["s_iterations"] = summarise([s_iterations(a, b, worse=True) for a, b in pairs])
            for key in ("gain", "s_compute", "s_iterations"):
                headline[f"{key}_{name}"] = row[key]["mean"]
        rows.append(row)
    experiment.show(rows)
    described = fashion.dataset() | {"learning_rates": rates, "tuning_fid": tuning}
    experiment.write(done, rows, headline, described)


if __name__ == "__main__":
    main()
