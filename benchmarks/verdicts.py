"""Which published tricks make training faster: each alone, on two tuned baselines, on each dataset.

`python benchmarks/verdicts.py` tunes the baselines on Fashion-MNIST (batch, learning rate and
decay, then the average: two seeds, all images, SEARCH), then trains them and every trick on each
dataset with three seeds, and writes benchmarks/results/verdicts.json. The other datasets were not
seen by any search. `--only DATASET ...` does some of them, `--baselines NAME ...` some of the
baselines, `--tricks NAME ...` some of the tricks beside their baselines; all keep what is known of
the rest. `--tuned` takes what the search found from that file. `--photographs DIR`: a folder of
large ones, of which `patches` are cut. Run it again to go on where it was interrupted.

`--alone` then takes the seconds of the recipes that are made quick and of their controls again, one
job after the other, which needs the machine to itself.

A small batch gains images and loses seconds. So EDM is tuned once more, `edm-quick`, for the lowest
FID in the seconds that tuned EDM takes (PACE), and `quick` is the outcome of the same search with
the tricks that cost few of them. `best` are those that save most images. `-flow`: on flow matching.

Gains are to equal FID, the worse of the two last ones, so they are below one where a trick loses:
how many times fewer images (those that one worker sees in a row), training FLOPs and CPU-seconds.
Seconds are of the training and of all that it alone needs: pairing, analyses, features.
"""

import argparse
import copy
import itertools
import json
import os
import shutil
import statistics
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import experiment
import fashion
from common import RESULTS, machine, write_results
from disentangled import few
from experiment import Experiment, curve, ratio_with_spread, speedup, summarise
from headline import STAGES, over, trained

IMAGES = 12_000
ROWS = 20_000  # of each dataset

LATENT = {"encoder": "autoencoder", "channels": 2, "downsample": 4}
DATASETS: dict[str, dict[str, Any]] = {
    "fashion": {"data": {"source": "fashion-mnist", "resolution": 32}, "latent": LATENT},
    "patches": {
        "data": {"source": "patches", "side": 64, "resolution": 32, "duplicates": "drop"},
        "latent": LATENT | {"channels": 4},
    },
    "synthetic": {"data": {"source": "synthetic"}, "latent": LATENT | {"downsample": 2}},
}
TUNED_ON = "fashion"

DDPM: dict[str, Any] = {"schedule": {"kind": "linear", "states": 1000}, "prediction": "eps"}
BASELINES = {"ddpm": DDPM, "edm": fashion.EDM}
FLOW = {
    "schedule": {"kind": "flow"},
    "prediction": "flow",
    "sampling": {"kind": "euler", "steps": 16},
}
STARTS = {**BASELINES, "flow": FLOW}

Options = dict[str, dict[str, Any]]  # what changes in a recipe, by name
TUNED_BY = [0, 1]  # seeds


def paced(images: int) -> dict[str, Any]:
    """Training of so many images, scored at a quarter and a half of them, too."""
    return {"images": images, "milestones": [images // 4, images // 2]}


RATES = (0.005, 0.01, 0.02)
SEARCH: list[tuple[str, Options]] = [
    (
        "step",
        {
            f"{batch}-{rate}-{decay}": trained(batch=batch, learning_rate=rate, decay=decay)
            for batch in (32, 16, 8)
            for rate in RATES
            for decay in ("cosine", "linear")
        },
    ),
    # At most a twentieth of the images seen, so 3,000 are 600 at the end.
    ("average", {str(n): trained(ema_halflife=n) for n in (3_000, 200)}),
]
# For each batch, the images that take as long as 12,000 in batches of 16, on one core.
PACE = {16: 12_000, 32: 18_000, 64: 23_000}
SEARCH_QUICK: Options = {
    f"{batch}-{rate}": trained(batch=batch, learning_rate=rate, **paced(images))
    for batch, images in PACE.items()
    for rate in RATES
}
OTHER_RATES: Options = {  # of an optimizer whose steps are others
    str(rate): trained(learning_rate=rate) for rate in (0.005, 0.01, 0.02, 0.05)
}


@dataclass(frozen=True)
class Trick:
    """What changes in a baseline, and what is said of it.

    claim: the paper's, in its own terms; note: what it is here. labelled: on datasets with classes
    alone, beside a class-conditional baseline. tuned: its learning rate is chosen anew.
    """

    recipe: dict[str, Any]
    paper: str
    claim: str
    note: str = ""
    labelled: bool = False
    tuned: bool = False


TRICKS: dict[str, Trick] = {
    "assignment": Trick(
        {"pairing": {"method": "assignment", "block": 1024, "sweeps": 8}},
        "Immiscible diffusion, Li et al. 2024",
        "up to 3 times faster",
        "at dataset level instead of in a batch",
    ),
    "assignment-quick": Trick(
        {"pairing": {"method": "assignment", "block": 128, "sweeps": 2}},
        "Immiscible diffusion, Li et al. 2024",
        "up to 3 times faster",
        "in blocks of 128 instead of 1,024 and two sweeps instead of eight, for seconds' sake",
    ),
    "semidiscrete": Trick(
        {"pairing": {"method": "semidiscrete"}},
        "semidiscrete flow matching, Mousavi-Hosseini et al. 2025",
        "better than pairing in a batch at no cost in a step",
    ),
    "knn": Trick(
        {"pairing": {"method": "knn-l2", "candidates": 8, "center": False}},
        "Improved immiscible diffusion, Li et al. 2025",
        "more than 4 times faster",
        "as published",
    ),
    "knn-centred": Trick(
        {"pairing": {"method": "knn-l2", "candidates": 8}},
        "ours",
        "",
        "the same without the mean image",
    ),
    "min-snr": Trick(
        trained(weighting={"kind": "min-snr"}), "Min-SNR, Hang et al. 2023", "3.4 times faster"
    ),
    "uncertainty": Trick(
        trained(weighting={"kind": "uncertainty"}),
        "EDM2, Karras et al. 2024",
        "a better loss weighting",
    ),
    "clts": Trick(
        {"curriculum": {"kind": "clts"}},
        "Xu et al. 2024",
        "2 to 2.6 times faster, with MDLRC",
        "a reconstruction",
    ),
    "static": Trick(
        {"curriculum": {"kind": "static"}}, "ours", "", "the end of `clts` from the first image on"
    ),
    "uniform": Trick(
        {"curriculum": {"kind": "uniform"}},
        "ours",
        "",
        "every state as often, as DDPM has it: EDM without its density",
    ),
    "mdlrc": Trick(
        trained(decay="mdlrc"),
        "Xu et al. 2024",
        "2 to 2.6 times faster, with CLTS",
        "a reconstruction",
    ),
    "speed": Trick({"curriculum": {"kind": "speed"}}, "SpeeD, Wang et al. 2025", "3 times faster"),
    "adaptive": Trick(
        {"curriculum": {"kind": "adaptive"}},
        "Kim et al. 2025",
        "faster training and improved performance at convergence",
        "a reconstruction",
    ),
    "muon": Trick(
        trained(optimizer={"kind": "muon"}),
        "Muon, Jordan et al. 2024",
        "about 1.5 to 2 times fewer FLOPs, on language models",
        "its learning rate tuned as Adam's",
        tuned=True,
    ),
    "dispersive": Trick(
        trained(auxiliary={"kind": "dispersive"}),
        "dispersive loss, Wang & He 2025",
        "a better FID at no cost",
    ),
    "repa": Trick(
        trained(auxiliary={"kind": "repa"}),
        "REPA, Yu et al. 2025",
        "17.5 times faster",
        "one vector an image, of the small classifier that scores it",
    ),
    "contrastive": Trick(
        trained(auxiliary={"kind": "contrastive"}),
        "contrastive flow matching, Stoica et al. 2025",
        "up to 9 times faster",
        labelled=True,
    ),
    "stages": Trick(
        STAGES, "multi-stage, Zhang et al. 2024", "better FID at fewer FLOPs", "tailored decoders"
    ),
    "few-states": Trick(few(), "T-space, Gupta et al. 2024", "4 to 6 times faster", "16 states"),
    "intervals": Trick(
        few() | {"partition": {"kind": "uniform", "intervals": 4}},
        "T-space, Gupta et al. 2024",
        "4 to 6 times faster",
        "16 states, an expert for every four",
    ),
    "clusters": Trick(
        {"partition": {"kind": "data", "clusters": 4, "router": {"images": IMAGES // 4}}},
        "decentralized diffusion, McAllister et al. 2025",
        "a better FID at equal FLOPs",
        "four experts over clusters of the data; the most probable one answers",
    ),
    "clusters-mixed": Trick(
        {
            "partition": {"kind": "data", "clusters": 4, "router": {"images": IMAGES // 4}},
            "sampling": {"kind": "ddim", "steps": 16, "top": 4},
        },
        "decentralized diffusion, McAllister et al. 2025",
        "a better FID at equal FLOPs",
        "the same experts; all answer, by the router's probabilities",
    ),
    "clusters-intervals": Trick(
        few()
        | {
            "partition": {
                "kind": "data",
                "clusters": 2,
                "intervals": 2,
                "router": {"images": IMAGES // 4},
            },
            "sampling": {"kind": "ddim", "steps": 16, "top": 2},
        },
        "ours",
        "",
        "16 states, an expert for each half of them and each of two clusters; both answer",
    ),
}
# The states of few-level recipes are their own: no law of the baseline's schedule belongs to them.
LEVELS = ("schedule", "curriculum")


def recipe(base: dict[str, Any], trick: Trick) -> dict[str, Any]:
    """A trick on a baseline."""
    own = trick.recipe
    if "schedule" in own:  # evenly spread states, drawn uniformly
        base = {key: value for key, value in base.items() if key not in LEVELS}
    found = over(base, own)
    if trick.labelled:
        found = over(found, {"network": {"class_conditional": True}})
    return found


def params(dataset: str, recipes: dict[str, Any], photographs: str | None) -> Any:
    found = copy.deepcopy(fashion.BASE) | copy.deepcopy(DATASETS[dataset])
    found["data"] |= {"limit": ROWS, "holdout": 0}
    if dataset == "patches":
        if photographs is None:
            raise SystemExit("patches: --photographs DIR names the folder that they are cut from")
        found["data"]["path"] = photographs
    found["defaults"]["training"] |= paced(IMAGES) | {"warmup": 1_000, "experts_per_job": 4}
    found["recipes"] = recipes
    return found


def tune(workers: int, baselines: Collection[str]) -> dict[str, Any]:
    """For each recipe that is tuned what its search found, and every option's FID: step by step.

    Those are the baselines; then, on what was found, tricks with other steps, and EDM and its
    tricks for seconds.
    """
    found: dict[str, Any] = {}
    recipes: dict[str, Any] = {}

    def start(name: str, recipe: dict[str, Any]) -> None:
        found[name] = {"recipe": recipe, "rows": []}

    def search(step: str, options: Mapping[str, Options]) -> None:
        """Take the best of each one's options, all of them trained together."""
        names = {
            name: {f"{name}-{step}-{key}".replace(".", "_"): blocks for key, blocks in own.items()}
            for name, own in options.items()
        }
        for name, own in names.items():
            for key, blocks in own.items():
                recipes[key] = over(found[name]["recipe"], blocks) | {"seeds": TUNED_BY}
        wanted = params(TUNED_ON, recipes, None)
        wanted["defaults"]["training"]["milestones"] = []
        runs = experiment.run("verdicts-tuning", wanted, workers=workers).seeds()
        for name, own in names.items():
            fids = {key: statistics.fmean(run["fid"] for run in runs[key].values()) for key in own}
            best = over(found[name]["recipe"], own[min(fids, key=fids.__getitem__)])
            rows = [{"step": step, "option": key, "fid": fid} for key, fid in fids.items()]
            found[name] = {"recipe": best, "rows": [*found[name]["rows"], *rows]}

    for name in baselines:
        start(name, STARTS[name])
    for step, options in SEARCH:
        search(step, dict.fromkeys(baselines, options))
    apart = [
        (name, trick)
        for name, trick in itertools.product(baselines, TRICKS)
        if TRICKS[trick].tuned and name in BASELINES
    ]
    for name, trick in apart:
        start(f"{name}-{trick}", over(found[name]["recipe"], TRICKS[trick].recipe))
    if apart:
        search("rate", {"-".join(each): OTHER_RATES for each in apart})
    if "edm" in baselines:
        start("edm-quick", found["edm"]["recipe"])
        start("quick", over(found["edm"]["recipe"], TRICKS["uncertainty"].recipe))
        search("step", dict.fromkeys(("edm-quick", "quick"), SEARCH_QUICK))
        pairings = {"none": {}, "assignment": TRICKS["assignment-quick"].recipe}
        search("pairing", {"quick": pairings})
    return found


def arms(tuning: Mapping[str, Any]) -> Options:
    """All recipes, by name: of the baselines that were tuned."""
    found: Options = {}
    for base, plain in STARTS.items():
        if base not in tuning:
            continue
        tuned = tuning[base]["recipe"]
        found[base] = tuned
        if base not in BASELINES:
            continue
        found[f"{base}-plain"] = plain
        found[f"{base}-labelled"] = over(tuned, {"network": {"class_conditional": True}})
        for name, trick in TRICKS.items():
            own = tuning.get(f"{base}-{name}")  # its learning rate is its own
            found[f"{base}-{name}"] = own["recipe"] if own else recipe(tuned, trick)
    if "edm" in tuning:
        weighted = over(tuning["edm"]["recipe"], TRICKS["uncertainty"].recipe)
        found["best"] = over(weighted, TRICKS["assignment"].recipe)
        found |= {name: tuning[name]["recipe"] for name in ("edm-quick", "quick")}
        found["edm-plain-long"] = over(fashion.EDM, trained(**paced(PACE[64])))
    if {"edm", "flow"} <= tuning.keys():  # the same on flow matching
        weighted = over(tuning["flow"]["recipe"], TRICKS["uncertainty"].recipe)
        found["best-flow"] = over(weighted, TRICKS["assignment"].recipe)
        quick = tuning["quick"]["recipe"]
        kept = {key: own for key, own in quick.items() if key in ("training", "pairing")}
        found["quick-flow"] = FLOW | kept
    return found


def helper_seconds(done: Experiment) -> dict[str, dict[int, float]]:
    """CPU-seconds of what each recipe alone needs before it can train, up to each milestone."""
    from pipeline import plan
    from stages import facts
    from stages.report.costs import analyses_of
    from stages.workspace import Workspace

    workspace = Workspace(done.folder)
    known = facts.facts_of(workspace)
    found: dict[str, dict[int, float]] = {}
    for name, planned in plan.experts(workspace.params, known).items():
        alone = {job.name for job in analyses_of(workspace, known, planned) if job.kind != "expert"}
        found[name] = {}
        for milestone in planned.milestones:
            needed = set(alone)
            for expert in planned.experts:
                rows = len_of(workspace, expert)
                for need in expert.job.needs:
                    kind = need.partition("/")[0]
                    if kind == "features":
                        needed.add(need)
                    elif kind == "pairing":
                        first = workspace.store.entry(need).spec()["slots"][0]
                        if first * rows < expert.snapshots[milestone]:
                            needed.add(need)
            made = (workspace.store.entry(need).circumstances() for need in sorted(needed))
            found[name][milestone] = sum(each["cpu_seconds"] for each in made)
    return found


def len_of(workspace: Any, expert: Any) -> int:
    """Rows of the dataset that an expert's latents have."""
    specs = (workspace.store.entry(name).spec() for name in expert.job.spec.latents)
    return sum(spec["last"] - spec["first"] for spec in specs)


COSTS = {
    "images": "images_seen_critical",
    "flops": "train_flops",
    "seconds": "all_cpu_seconds",
}
LAW = ("tv_shape_colour", "off_law")  # scores of `synthetic` without features
BEST, QUICK = ("best", "best-flow"), ("quick", "quick-flow")  # for images, for seconds
QUICK_BESIDE = ("edm-quick", "edm-plain-long")  # with which those made quick are compared, too


def measured(dataset: str, done: Experiment) -> list[dict[str, Any]]:
    """A row for each recipe: its scores, and its gains over its control."""
    helpers = helper_seconds(done)
    for name, found in done.recipes.items():
        for images, point in found["milestones"].items():
            point["all_cpu_seconds"] = point["cpu_seconds"] + helpers[name][int(images)]
    runs = done.seeds()
    rows = []
    for name, own in runs.items():
        control = control_of(name)
        row: dict[str, Any] = {"dataset": dataset, "recipe": name, "control": control}
        known = [key for key in ("fid", *LAW) if key in next(iter(own.values()))]
        row |= {key: summarise([run[key] for run in own.values()]) for key in known}
        if control != name:
            row["fid_divided"] = ratio_with_spread(
                [runs[control][seed]["fid"] for seed in own], [run["fid"] for run in own.values()]
            )
            row |= {what: gain(runs, control, name, what) for what in COSTS}
        if name in QUICK:
            row |= {f"seconds_vs_{other}": gain(runs, other, name) for other in QUICK_BESIDE}
        rows.append(row)
    return rows


def gain(
    runs: Mapping[str, Mapping[int, Any]], control: str, name: str, what: str = "seconds"
) -> dict[str, Any]:
    """How many times less of a cost a recipe needs than its control, over the seeds."""
    return summarise(
        [
            speedup(runs[control][seed], run, lambda r: curve(r, COSTS[what]), worse=True)
            for seed, run in runs[name].items()
        ]
    )


def control_of(name: str) -> str:
    """The arm that one is compared with: the tuned baseline, or that which is told the classes."""
    base, _, trick = name.partition("-")
    if base not in BASELINES:
        return "edm"
    if trick in TRICKS and TRICKS[trick].labelled:
        return f"{base}-labelled"
    return base


def word(gain: Mapping[str, Any]) -> str:
    """What the seeds say of one gain: `gains`, `loses`, or neither beyond their spread."""
    if gain["mean"] is None:
        return "unclear"
    if gain["min"] > 1.05:
        return "gains"
    return "loses" if gain["max"] < 0.95 else "no difference"


def verdict(words: list[str]) -> str:
    """Of one trick over all baselines and datasets."""
    gains, loses = words.count("gains"), words.count("loses")
    if gains and loses:
        return "gains and loses"
    if not gains and not loses:
        return "no clear difference"
    what = "gains" if gains else "loses"
    count = gains + loses
    return what if count == len(words) else f"{what} in {count} of {len(words)}"


def headline_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the best recipe gains over EDM in images, and the quickest in seconds.

    Which these are is decided on the dataset that recipes are tuned on, for all.
    """
    at = {(row["dataset"], row["recipe"]): row for row in rows}

    def first(names: Collection[str], what: str) -> str:
        return max(names, key=lambda name: at[TUNED_ON, name][what]["mean"])

    best, quick = first(BEST, "images"), first(QUICK, "seconds")
    found: dict[str, Any] = {"best": best, "quick": quick}
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        if not {(dataset, best), (dataset, quick)} <= at.keys():  # tricks alone were run there
            continue
        images, seconds = at[dataset, best], at[dataset, quick]
        found[f"images_speedup_vs_edm_tuned_{dataset}"] = images["images"]["mean"]
        found[f"seconds_speedup_vs_edm_tuned_{dataset}"] = seconds["seconds"]["mean"]
        found[f"seconds_speedup_vs_edm_quick_{dataset}"] = seconds["seconds_vs_edm-quick"]["mean"]
        found[f"seconds_speedup_vs_edm_{dataset}"] = seconds["seconds_vs_edm-plain-long"]["mean"]
    return found


def timed_alone(dataset: str, wanted: Any) -> list[dict[str, Any]]:
    """Rows of recipes that are trained and paired once more, one job after the other.

    Their bits are the same, so samples and scores are taken from the store.
    """
    folder, name = experiment.BENCH / "alone", f"verdicts-{dataset}"
    store = folder / "store"
    shutil.rmtree(store, ignore_errors=True)
    again = shutil.ignore_patterns("expert", "pairing")
    shutil.copytree(experiment.BENCH / "store", store, ignore=again, copy_function=os.link)
    return measured(dataset, experiment.run(name, wanted, workers=1, folder=folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--baselines", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--tricks", nargs="+", choices=TRICKS)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--photographs")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    path = RESULTS / "verdicts.json"
    known = json.loads(path.read_text()) if path.exists() else {"rows": [], "machine": {}}
    described = machine()
    tuning = known["machine"].get("tuning", {})
    if not options.tuned and not options.alone:
        tuning |= tune(options.workers, options.baselines)
    left_out = set(STARTS) - set(options.baselines)
    recipes = arms({name: own for name, own in tuning.items() if name not in left_out})
    if options.alone:
        recipes = {name: recipes[name] for name in ("edm", *QUICK, *QUICK_BESIDE)}
    elif options.tricks:
        some = {f"{base}-{trick}" for base in BASELINES for trick in options.tricks}
        some |= {control_of(name) for name in some}
        recipes = {name: own for name, own in recipes.items() if name in some}
    rows = {(row["dataset"], row["recipe"]): row for row in known["rows"]}
    references = known["machine"].get("references", {})
    for dataset in options.only:
        wanted = params(dataset, recipes, options.photographs)
        if options.alone:
            own = timed_alone(dataset, wanted)
        else:
            done = experiment.run(f"verdicts-{dataset}", wanted, workers=options.workers)
            own, references[dataset] = measured(dataset, done), done.reference
        experiment.show(own)
        rows |= {(dataset, row["recipe"]): row for row in own}
    described |= {"images": IMAGES, "rows_of_each": ROWS}
    described |= {"tuning": tuning, "references": references}
    ordered = sorted(rows.values(), key=lambda row: list(DATASETS).index(row["dataset"]))
    write_results("verdicts", ordered, headline_of(ordered), described)


if __name__ == "__main__":
    main()
