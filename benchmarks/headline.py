"""How many times fewer images: each idea alone on two baselines, and the best combination found.

`python benchmarks/headline.py` first searches, on one seed at a quarter of the budget, one setting
after the other (SEARCH: all its options are trained, the lowest FID is kept); then trains the
baselines, each idea alone on each of them, and what the search found, with three seeds at the full
budget, on Fashion-MNIST latents. Because the search may also choose batch and learning rate, both
baselines are trained with the chosen ones, too (`-tuned`): what the ideas add is what `best` is
better than these. benchmarks/results/headline.json has images, FLOPs and seconds to the FID that a
baseline ends with (what is reached before the first evaluation counts as reached then); what
experts take to the FID that they do reach is in disentangled.py. Run it again to go on where it was
interrupted.
"""

import copy
import sys
from collections.abc import Mapping
from typing import Any

import experiment
import fashion
from disentangled import EACH, STATES
from experiment import curve, s_compute, s_wall, speedup, summarise

from stages.tools import sweep

IMAGES = 24_000
MILESTONES = [3_000, 6_000, 12_000]
EXPERTS_IMAGES = 2  # times as many for one expert per state
STEPS = 16
OTHER_STEPS = (8, 50)

EVEN = {"schedule": fashion.SCHEDULE}
EDM, PAIRED = fashion.EDM, fashion.PAIRED
DDPM: dict[str, Any] = {"schedule": {"kind": "linear", "states": 1000}, "prediction": "eps"}
STAGES = {
    "network": {"kind": "multi-decoder", "decoder_channels": [20, 12, 4]},
    "partition": {"kind": "optimal-denoiser", "eta": 0.1, "draws": 2_000, "rows": 20_000},
}


def trained(**settings: Any) -> dict[str, Any]:
    return {"training": settings}


# One after the other; the first option is the plain one.
SEARCH: list[tuple[str, dict[str, dict[str, Any]]]] = [
    ("base", {"ddpm": DDPM, "even": EVEN, "edm": EDM}),
    (
        "step",
        {
            f"{batch}-{rate}": trained(batch=batch, learning_rate=rate)
            for batch in (64, 32, 16)
            for rate in (0.002, 0.005, 0.01)
        },
    ),
    ("decay", {kind: trained(decay=kind) for kind in ("cosine", "linear", "mdlrc")}),
    ("average", {str(n): trained(ema_halflife=n) for n in (3_000, 1_000)}),
    ("network", {"unet": {}, "stages": STAGES}),
    ("pairing", {"independent": {}, "assignment": PAIRED}),
    ("weighting", {"own": {}, "min-snr": trained(weighting={"kind": "min-snr"}),
                   "uncertainty": trained(weighting={"kind": "uncertainty"})}),
    ("curriculum", {"own": {}, "clts": {"curriculum": {"kind": "clts"}},
                    "speed": {"curriculum": {"kind": "speed", "lam": None}}}),
]  # fmt: skip


def over(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """A recipe's blocks over another's; a block of another form replaces the whole block."""
    found = copy.deepcopy(base)
    for key, value in more.items():
        mine = found.get(key)
        whole = key != "training" or not isinstance(mine, dict)
        found[key] = copy.deepcopy(value) if whole else mine | value
    return found


def search() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The best recipe found, and what each option scored: an instance of `tspace sweep`."""
    recipes: dict[str, Any] = {}

    def score(tried: Mapping[str, dict[str, Any]], images: int) -> dict[str, float]:
        recipes.update({key: own | {"seeds": [0]} for key, own in tried.items()})
        wanted = fashion.params(recipes, images=images, milestones=[])
        found = experiment.run("headline-search", wanted).recipes
        return {key: found[f"{key}-seed0"]["fid"] for key in tried}

    steps = [
        (name, {f"{name}-{option}".replace(".", "_"): own for option, own in options.items()})
        for name, options in SEARCH
    ]
    best, rows = sweep.search(steps, [IMAGES // 4], 1.0, score)
    return best, [{"search": r["search"], "option": r["option"], "fid": r["score"]} for r in rows]


def arms(best: dict[str, Any]) -> dict[str, Any]:
    step = {k: v for k, v in best.get("training", {}).items() if k != "weighting"}
    apart = {"partition": EACH, "training": long(EXPERTS_IMAGES)}
    few_edm = EDM["schedule"] | {"states": STATES}
    found = {
        "ddpm": DDPM,
        "ddpm-tuned": over(DDPM, {"training": step}),
        "ddpm-experts": over(DDPM, {"schedule": DDPM["schedule"] | {"states": STATES}, **apart}),
        "ddpm-curriculum": over(DDPM, {"curriculum": {"kind": "clts"}, **trained(decay="mdlrc")}),
        "ddpm-stages": over(DDPM, STAGES),
        "ddpm-paired": over(DDPM, PAIRED),
        "edm": EDM,
        "edm-tuned": over(EDM, {"training": step}),
        "edm-experts": over(EDM, {"schedule": few_edm, "curriculum": {"kind": "uniform"}, **apart}),
        "edm-curriculum": over(EDM, trained(decay="mdlrc")),
        "edm-stages": over(EDM, STAGES),
        "edm-paired": over(EDM, PAIRED),
        "best": best,
    }
    for name in ("ddpm", "edm", "best"):
        for steps in OTHER_STEPS:
            sampled = {"sampling": {"kind": "ddim", "steps": steps}, "seeds": [0]}
            found[f"{name}-{steps}"] = found[name] | sampled
    return found


def long(times: int) -> dict[str, Any]:
    """Training for so many times the images, scored at as many times the milestones."""
    images = {"images": times * IMAGES, "milestones": [times * m for m in MILESTONES]}
    return images | {"experts_per_job": 4}


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)
    best, searched = search()
    experiment.print_table(searched, list(searched[0]))
    print(f"best: {best}")
    done = experiment.run(
        "headline", fashion.params(arms(best), images=IMAGES, milestones=MILESTONES)
    )
    runs = done.seeds()
    rows: list[dict[str, Any]] = []
    for arm, own in runs.items():
        row: dict[str, Any] = {"arm": arm}
        for key in ("fid", "precision", "recall"):
            row[key] = summarise([run[key] for run in own.values()])
        row |= {key: next(iter(own.values()))[key] for key in ("images_seen", "train_flops")}
        for base in ("ddpm", "edm", "edm-tuned"):
            pairs = [(runs[base][seed], run) for seed, run in own.items()]
            row[f"images_vs_{base}"] = summarise([speedup(a, b, curve) for a, b in pairs])
            if base in ("ddpm", "edm"):
                row[f"flops_vs_{base}"] = summarise([s_compute(a, b) for a, b in pairs])
                row[f"seconds_vs_{base}"] = summarise([s_wall(a, b, 1) for a, b in pairs])
        rows.append(row)
    experiment.show(rows)
    at = {row["arm"]: row for row in rows}
    headline = {
        "images_speedup_vs_ddpm": at["best"]["images_vs_ddpm"]["mean"],
        "images_speedup_vs_edm": at["best"]["images_vs_edm"]["mean"],
        "tuned_ddpm_images_speedup": at["ddpm-tuned"]["images_vs_ddpm"]["mean"],
        "tuned_edm_images_speedup": at["edm-tuned"]["images_vs_edm"]["mean"],
        "images_speedup_vs_edm_tuned": at["best"]["images_vs_edm-tuned"]["mean"],
        **{f"fid_{arm}": at[arm]["fid"]["mean"] for arm in ("ddpm", "edm", "best")},
    }
    described = fashion.dataset() | {"best": best, "searched": searched, "steps": STEPS}
    experiment.write(done, rows, headline, described)


if __name__ == "__main__":
    main()
