"""Which noise levels when, and which momentum when: curricula, decays and their controls.

`python benchmarks/curriculum.py` trains every arm with three seeds on Fashion-MNIST latents and
writes benchmarks/results/curriculum.json. Run it again to go on where it was interrupted.
"""

import itertools
from typing import Any

import experiment
import fashion
from experiment import summarise

CLTS = {"curriculum": {"kind": "clts"}}
ARMS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "clts": CLTS,
    "static": {"curriculum": {"kind": "static"}},
    "speed": {"curriculum": {"kind": "speed", "lam": None}},  # its density alone
    "edm-lognormal": {"curriculum": {"kind": "edm-lognormal"}},
    "min-snr": {"training": {"weighting": {"kind": "min-snr"}}},
    "uncertainty": {"training": {"weighting": {"kind": "uncertainty"}}},
}
# The two parts of MDLRC apart, and both: its compensation is a linear decay of the learning rate.
DECAYS = {
    (False, False): "constant",
    (True, False): "momentum-decay",
    (False, True): "linear",
    (True, True): "mdlrc",
}


def factorial() -> dict[str, Any]:
    """2x2x2 of CLTS, momentum decay and linear learning-rate decay."""
    found = {}
    for clts, momentum, linear in itertools.product((False, True), repeat=3):
        name = f"factor-{'c' if clts else 'n'}{'m' if momentum else 'n'}{'l' if linear else 'n'}"
        decay = {"training": {"decay": DECAYS[momentum, linear], "floor": 0.0}}
        found[name] = (CLTS if clts else {}) | decay
    return found


def effect(runs: dict[str, Any], place: int) -> dict[str, Any]:
    """FID with a factor over FID without it, the others equal: over the four pairs and the seeds.

    place: of the factor's letter in `factor-cml`.
    """
    ratios = []
    for name in runs:
        if name.startswith("factor-") and name[7 + place] != "n":
            without = name[: 7 + place] + "n" + name[8 + place :]
            for seed, run in runs[name].items():
                ratios.append(run["fid"] / runs[without][seed]["fid"])
    return summarise(ratios)


def main() -> None:
    done = experiment.run(
        "curriculum", fashion.params(ARMS | factorial(), images=24_000, milestones=[12_000])
    )
    runs = done.seeds()
    rows, headline = [], {}
    for arm, own in runs.items():
        row: dict[str, Any] = {"arm": arm}
        for key in ("fid", "precision", "recall"):
            row[key] = summarise([run[key] for run in own.values()])
        sooner = [experiment.s_iterations(runs["uniform"][s], run) for s, run in own.items()]
        row["images_speedup"] = summarise(sooner)
        rows.append(row)
        headline[f"fid_{arm}"] = round(row["fid"]["mean"], 3)
    for place, factor in enumerate(("clts", "momentum_decay", "linear_decay")):
        found = effect(runs, place)
        rows.append({"arm": f"effect of {factor}", "fid_ratio": found})
        headline[f"fid_ratio_{factor}"] = round(found["mean"], 3)
    experiment.show(rows)
    experiment.write(done, rows, headline, fashion.dataset())


if __name__ == "__main__":
    main()
