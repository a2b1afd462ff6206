"""Writes what the docs show of results: `python docs/update.py`.

The README's table and picture come from the last `make repro`, the lists of benchmarks there and in
benchmarks.md from benchmarks/results/*.json. Without results/, only the latter.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

sys.path.insert(0, str(ROOT / "benchmarks"))

import verdicts  # noqa: E402
from common import machine  # noqa: E402
from experiment import makespan  # noqa: E402

from stages.pictures import save  # noqa: E402
from stages.report.costs import together  # noqa: E402
from stages.report.groups import units_of  # noqa: E402
from stages.report.write import floor_text, footnote_text, samples_text, table_rows  # noqa: E402

README = ROOT / "README.md"
MEASURED = ROOT / "docs" / "benchmarks.md"
# What the README says of each benchmark; {key} is a figure of its headline.
SENTENCES = {
    "centering": "KNN selection divides FID at 16 steps by {ddpm_knn-l2_gain_16} as published, by "
    "{ddpm_knn-l2-centered_gain_16} without the mean image (DDPM); by {edm_knn-l2_gain_16} and "
    "{edm_knn-l2-centered_gain_16} (EDM)",
    "clustering": "50,000 images: two anchors of the time axis in {seconds_50k} s, "
    "{speedup_vs_naive} times faster per draw than the usual way of summing",
    "consistency": "samples of networks trained apart, from the same noise: consistency "
    "{seeds_alike_uniform} ({by_chance} by chance); 16 experts {seeds_alike_experts}",
    "curriculum": "FID uniform {fid_uniform}, CLTS {fid_clts}, its end state from the start "
    "{fid_static}, log-normal {fid_edm-lognormal}, Min-SNR {fid_min-snr}; MDLRC {fid_factor-nml}, "
    "no decay {fid_factor-nnn}",
    "disentangled": "16 experts to one network's FID: {s_iterations} times fewer images in a row, "
    "{s_compute} times the compute speed, {s_wall_vs_data_parallel} times a data-parallel run's "
    "speed on as many workers",
    "disentangled-long": "with four times the images: 16 experts {s_iterations_experts-quarter} "
    "times fewer in a row, {s_compute_experts-quarter} times the compute speed; 4 experts "
    "{s_iterations_intervals} and {s_compute_intervals}; 4 small ones beside a small network "
    "{s_iterations_vs_small_intervals-small} and {s_compute_vs_small_intervals-small}",
    "disentangled-tiny": "with sixteen times the images: 4 tiny experts beside one tiny network "
    "{s_iterations_intervals-tiny} times fewer in a row, {s_compute_intervals-tiny} times the "
    "compute speed",
    "disentangled-pixels": "16x16 pixels: 16 experts {s_iterations} times fewer images in a row, "
    "{s_compute} times the compute speed, {s_wall_vs_data_parallel} times a data-parallel run's",
    "explanations": "exact denoisers of digits and of Fashion-MNIST: samples after KNN selection "
    "are at Frechet distance {digits_knn_fd} and {fashion_knn_fd} if they start from N(0, I) "
    "(independent noise: {digits_fd} and {fashion_fd}), {digits_knn_fd_own} and "
    "{fashion_knn_fd_own} if from its own noise; where one of four clusters answers "
    "{digits_top_1_fd} and {fashion_top_1_fd}; assignment leaves {digits_assigned_error_ratio} and "
    "{fashion_assigned_error_ratio} of the error of v at log-SNR -7",
    "fidelity": "Frechet distance in 2,048 dimensions: {speedup_vs_torch_fidelity_d2048} times "
    "torch-fidelity's speed, {speedup_vs_sqrtm_d2048} times scipy's sqrtm",
    "fingerprint": "whether any of 1.3 million images changed: {noop_cpu_seconds_1300000} s of one "
    "processor when none did",
    "headline": "the best combination found reaches plain DDPM's FID with at least "
    "{images_speedup_vs_ddpm} times fewer images, EDM's with {images_speedup_vs_edm}; batch, "
    "learning rate and decay alone give {tuned_ddpm_images_speedup} and "
    "{tuned_edm_images_speedup}",
    "immiscible": "exact pairing at dataset level divides FID by {ddpm_assignment-dataset_gain_8} "
    "(DDPM) and {edm_assignment-dataset_gain_8} (EDM) at 8 steps; published KNN selection by "
    "{ddpm_knn-l2_gain_8} and {edm_knn-l2_gain_8}",
    "latents": "FID {latents_fid} in latents, {pixels_fid} in pixels for as many seconds",
    "merging": "FID {fid_parent} of the parent, {fid_route} of three experts, {fid_average} "
    "averaged, {fid_confirmed} searched and confirmed, {fid_longer} of one longer fine-tune",
    "multistage": "FID at equal FLOPs: one decoder {fid_unified}, a decoder a stage "
    "{fid_equal-widths}, tailored {fid_tailored}",
    "networks": "at equal FLOPs: FID of a U-Net {fid_unet}, by flow matching {fid_unet-flow}; of a "
    "DiT {fid_dit}, by flow matching {fid_dit-flow}; on the DiT, pairing divides FID by "
    "{gain_dit-paired}, own last blocks by {gain_dit-stages}, CLTS by {gain_dit-clts}, four "
    "experts take {s_iterations_dit-16-four} times fewer images in a row at "
    "{s_compute_dit-16-four} times the compute speed",
    "orchestration": "1,000 experts: {overhead_seconds_per_expert_1000} s overhead per expert, "
    "{noop_seconds} s for a stage with nothing to do, {dvc_noop_seconds} s for `dvc repro`",
    "pairing": "{speedup_vs_paper_n1024} times as fast as the paper's recipe at n = 1024, "
    "{speedup_vs_paper_as_written_n1024} times as its code; 50,000 images in "
    "{dataset_slot_seconds_50k} s",
    "prepare": "photographs of {kilobytes} KB to 256x256: {alone} images/s on one processor, "
    "{together} on {processors}",
    "scaling": "one expert on {processes} processes: {speedup} times the images/s of one with the "
    "same bits, {communication} of the time in communication",
    "stacking": "experts trained stacked: {stacked_gain_4_channels_4_experts} to "
    "{stacked_gain_4_channels_16_experts} times the speed of one after the other",
    "streaming": "{rows} images from raw files to experts, largest process {largest_peak_mib} MiB",
    "verdicts": "beside EDM tuned as hard, `{best}` needs {images_speedup_vs_edm_tuned_fashion} "
    "times fewer images on Fashion-MNIST and {images_speedup_vs_edm_tuned_patches} on photographs, "
    "`{quick}` {seconds_speedup_vs_edm_tuned_fashion} and {seconds_speedup_vs_edm_tuned_patches} "
    "times fewer CPU-seconds; beside EDM tuned for seconds "
    "{seconds_speedup_vs_edm_quick_fashion} and {seconds_speedup_vs_edm_quick_patches}",
    "judges": "features of one dataset and of photographs order recipes with a rank correlation of "
    "{rank_correlation}; of {pairs} pairs both tell {pairs_alike} apart alike and {pairs_against} "
    "against each other",
    "throughput": "training at {speedup_vs_best_peer} times the better peer's GFLOP/s, "
    "{ceiling_fraction} of the fastest convolution's",
    "throughput-gpu": "on an H200 {speedup_vs_diffusers_bfloat16_compiled_36M} times diffusers' "
    "example in GFLOP/s, both compiled, and {speedup_vs_best_peer_36M} times the same made fast",
}

IN_README = (
    "headline",
    "verdicts",
    "immiscible",
    "disentangled",
    "disentangled-long",
    "consistency",
)


def main() -> None:
    results = {
        path.stem: json.loads(path.read_text())
        for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    }
    replace(MEASURED, "benchmarks", headlines(results, "../"))
    replace(README, "benchmarks", headlines({name: results[name] for name in IN_README}))
    for name, found in results.items():
        arms = [row for row in found["rows"] if "arm" in row or "contender" in row]
        if arms:
            replace(MEASURED, name, arms_table(found, arms))
    if "verdicts" in results:
        show_verdicts(results["verdicts"])
    if "disentangled" in results:
        draw_wall_clock(results["disentangled"])
    runs = [results.get(name) for name in ("disentangled-long", "disentangled-tiny", "verdicts")]
    if all(runs):
        draw_frontier(*runs)
    if (ROOT / "results" / "summary.json").exists():
        show_results()


def show_verdicts(found: dict) -> None:
    """The tables of docs/verdicts.md."""
    page = ROOT / "docs" / "verdicts.md"
    replace(page, "verdicts", verdicts_table(found))
    for dataset in dict.fromkeys(row["dataset"] for row in found["rows"]):
        about = judge(found["machine"]["references"][dataset])
        made = f"\n`{found['command']}`, {found['date']}, commit {found['commit']}."
        replace(page, dataset, [about, "", *dataset_table(found, dataset), made])
    replace(page, "notes", trick_notes())


def verdicts_table(found: dict) -> list[str]:
    """A row for each trick: its claim, its gain in images at every place, the verdict."""
    at = {(row["dataset"], row["recipe"]): row for row in found["rows"]}
    datasets = [
        name for name in verdicts.DATASETS if any(row["dataset"] == name for row in found["rows"])
    ]
    places = [place for place in itertools.product(datasets, verdicts.BASELINES) if place in at]
    heads = [f"{dataset}, {base}" for dataset, base in places]
    lines = [
        "| trick | claimed | " + " | ".join(heads) + " | here |",
        "|---|---|" + "---:|" * len(heads) + "---|",
    ]
    for name, trick in verdicts.TRICKS.items():
        rows = [at.get((dataset, f"{base}-{name}")) for dataset, base in places]
        if not any(rows):
            continue
        said = trick.claim or "a control of ours"
        cells = [spread(row and row["images"]) for row in rows]
        words = [verdicts.word(row["images"]) for row in rows if row]
        about = f"[{name}](#{name})"
        lines.append(
            f"| {about} | {said} | " + " | ".join(cells) + f" | {verdicts.verdict(words)} |"
        )
    return lines


def judge(reference: dict) -> str:
    """What a dataset's classifier has learnt, and what real images score."""
    right, chance = f"{reference['accuracy']:.0%}", f"{reference['chance']:.0%}"
    floor = reference["floor"]
    return (
        f"Its classifier tells {reference['classes']} {reference['task']} apart and is right on "
        f"{right} of the images held out (by chance {chance}). {number(floor['samples'])} real "
        f"images score {number(floor['fid'])}."
    )


def dataset_table(found: dict, dataset: str) -> list[str]:
    """A row for each recipe: its scores, and its gains over its control."""
    rows = [row for row in found["rows"] if row["dataset"] == dataset]
    law = {f"`{key}`": key for key in verdicts.LAW if key in rows[0]}
    columns = {"FID": "fid", **law, "images": "images", "FLOPs": "flops", "seconds": "seconds"}
    lines = [
        "| recipe | control | " + " | ".join(columns) + " |",
        "|---|---|" + "---:|" * len(columns),
    ]
    for row in rows:
        beside = "" if row["control"] == row["recipe"] else row["control"]
        cells = [spread(row.get(key)) for key in columns.values()]
        lines.append(f"| {row['recipe']} | {beside} | " + " | ".join(cells) + " |")
    return lines


def trick_notes() -> list[str]:
    """A paragraph on each trick: whose it is, what it is here, and the blocks that switch it on."""
    lines = []
    for name, trick in verdicts.TRICKS.items():
        blocks = yaml.safe_dump(trick.recipe, default_flow_style=True, width=1_000).strip()
        about = f"{trick.paper}; {trick.note}." if trick.note else f"{trick.paper}."
        lines += [f"### {name}", f"{about[0].upper()}{about[1:]} `{blocks[1:-1]}`", ""]
    return lines[:-1]


def replace(path: Path, block: str, lines: list[str]) -> None:
    """Put lines between the markers of a block."""
    text = path.read_text()
    begin, end = f"<!-- {block}:begin -->", f"<!-- {block}:end -->"
    start, stop = text.index(begin) + len(begin), text.index(end)
    path.write_text(text[:start] + "\n" + "\n".join(lines) + "\n" + text[stop:])


def headlines(results: dict[str, dict], up: str = "") -> list[str]:
    """A row for each committed result: what it says, and what made it. up: the way to the root."""
    lines = ["| benchmark | what it found | measured |", "|---|---|---|"]
    for name, found in results.items():
        shown = {key: number(value) for key, value in found["headline"].items()}
        link = f"[{name}]({up}benchmarks/results/{name}.json)"
        sentence = SENTENCES[name].format_map(shown)
        lines.append(f"| {link} | {sentence} | `{found['command']}`, {found['date']} |")
    return lines


def arms_table(found: dict, arms: list[dict]) -> list[str]:
    """The arms of a training benchmark: mean (lowest to highest) over its seeds."""
    columns = list(
        dict.fromkeys(k for row in arms for k, value in row.items() if not isinstance(value, list))
    )
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in arms:
        cells = [spread(row.get(key)) for key in columns]
        lines.append("| " + " | ".join(cells) + " |")
    commit = f", commit {found['commit']}" if "commit" in found else ""
    lines.append(f"\n`{found['command']}`, {found['date']}{commit}.")
    return lines


def spread(value: object) -> str:
    if not isinstance(value, dict):
        return "" if value is None else number(value)
    if value["mean"] is None:
        return f"not reached ({value['n']} of {value['of']})"
    low, high = number(value["min"]), number(value["max"])
    return number(value["mean"]) if low == high else f"{number(value['mean'])} ({low} to {high})"


LONG_RUNS = {  # by arm, beside `shared-16`
    "shared-16": "one network",
    "shared-small": "one smaller network",
    "data-parallel": "its batch on 16 workers",
    "experts-quarter": "an expert a state",
    "experts-small": "a smaller expert a state",
    "intervals": "an expert for four states",
    "intervals-small": "a smaller expert for four states",
}
SHORT_RUNS = {
    "intervals": "an expert for four states",
    "clusters": "for each of four clusters, one answers",
    "clusters-mixed": "for each of four clusters, all answer",
    "clusters-intervals": "for two clusters times two intervals",
}


def draw_frontier(long: dict, tiny: dict, short: dict) -> None:
    """Images in a row against compute to equal FID, for every kind of expert.

    Circles are of the long runs at evenly spread states, the square of tiny networks, triangles of
    the short runs beside EDM.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    points = []
    for row in long["rows"]:
        if label := LONG_RUNS.get(row.get("arm")):
            points.append((label, "o", row["s_compute"], row["s_iterations"]))
            if "s_compute_vs_small" in row:
                beside = row["s_compute_vs_small"], row["s_iterations_vs_small"]
                points.append((f"{label}, beside one as small", "o", *beside))
    for row in tiny["rows"]:
        if row.get("arm") == "intervals-tiny":
            label = "a tiny expert for four states, beside one as tiny"
            points.append((label, "s", row["s_compute"], row["s_iterations"]))
    points += [
        (label, "^", row["flops"], row["images"])
        for name, label in SHORT_RUNS.items()
        for row in short["rows"]
        if (row["dataset"], row["recipe"]) == ("fashion", f"edm-{name}")
    ]
    figure, axes = pyplot.subplots(figsize=(7.5, 4.6), dpi=110)
    for number, (label, marker, compute, images) in enumerate(points):
        bars = (
            [[own["mean"] - own["min"]], [own["max"] - own["mean"]]] for own in (compute, images)
        )
        wide, high = bars
        axes.errorbar(
            compute["mean"],
            images["mean"],
            high,
            wide,
            fmt=marker,
            color=pyplot.get_cmap("tab20")(number),
            label=label,
            capsize=2,
        )
    axes.axhline(1, color="0.8", zorder=0)
    axes.axvline(1, color="0.8", zorder=0)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="times less compute to equal FID, log",
        ylabel="times fewer images in a row, log",
    )
    for axis, ticks in ((axes.xaxis, (0.2, 0.5, 1, 2)), (axes.yaxis, (0.5, 1, 2, 5))):
        axis.set_major_locator(ticker.FixedLocator(ticks))
        axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.set_minor_formatter(ticker.NullFormatter())
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "frontier.png", metadata={"Software": None})
    pyplot.close(figure)


WORKERS = {"shared-16": (1,), "experts": (1, 8, 16), "data-parallel": (16,)}
NAMES = {"shared-16": "one network", "experts": "16 experts", "data-parallel": "one network"}


def draw_wall_clock(found: dict) -> None:
    """FID over the seconds that training takes on 1, 8 and 16 workers, from the measured jobs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=110)
    for colour, (arm, numbers) in zip(("C0", "C1", "C2"), WORKERS.items(), strict=True):
        for style, workers in zip(("-", "--", ":"), numbers, strict=False):
            points: dict[int, list[tuple[float, float]]] = {}
            for row in found["rows"]:
                if row.get("recipe") == arm:
                    seconds = makespan(row["expert_seconds"], workers)
                    if arm == "data-parallel":  # its batch is spread over the workers for nothing
                        seconds /= workers
                    points.setdefault(row["milestone"], []).append((seconds, row["fid"]))
            runs = np.array([points[milestone] for milestone in sorted(points)])
            seconds, fid = runs.mean(axis=1).T
            parallel = ", its batch on" if arm == "data-parallel" else " on"
            several = f"{workers} workers (computed)" if workers > 2 else "1 worker (measured)"
            label = f"{NAMES[arm]}{parallel} {several}"
            axes.plot(seconds, fid, style, marker="o", markersize=3, color=colour, label=label)
            axes.fill_between(
                seconds, *np.quantile(runs[..., 1], (0, 1), axis=1), color=colour, alpha=0.12
            )
    axes.set(xscale="log", yscale="log", xlabel="seconds of training, log", ylabel="FID, log")
    axes.set_title("Mean of three seeds; band: lowest to highest", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "disentangled.png", metadata={"Software": None})
    pyplot.close(figure)


def number(value: object) -> str:
    if value is None:
        return "not reached"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def show_results() -> None:
    results = ROOT / "results"
    summary = json.loads((results / "summary.json").read_text())
    spent = json.loads((results / "costs.json").read_text())["recipes"]
    last = {
        name: {key: value for key, value in own.items() if key != "milestones"}
        for name, own in spent.items()
    }
    shown = summary | {"costs": last}
    (ROOT / "docs" / "results.json").write_text(json.dumps(shown, indent=1) + "\n")
    recipes, groups = together(summary["recipes"], last), summary["groups"]
    head, *rows = table_rows(recipes, groups)
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    floor = " ".join(floor_text(summary["reference"]["floor"]))
    real = next(iter(recipes.values()))["reference_samples"]
    notes = " ".join(filter(None, [seeds(recipes, groups), footnote_text(recipes)]))
    lines.append(
        f"\n{samples_text(recipes)} against {number(real)} real images. {floor} "
        f"{notes} Measured with `make repro` on {describe(machine())}; numbers in "
        "[docs/results.json](docs/results.json)."
    )
    replace(README, "results", lines)
    draw_samples({unit.name: unit.members[0] for unit in units_of(list(recipes), groups)})


def seeds(recipes: dict, groups: dict) -> str:
    """How often each row was trained."""
    if not groups:
        return "One seed."
    alone = len(recipes) - sum(len(members) for members in groups.values())
    return "Of several seeds: mean (lowest..highest)." + (" The others: one seed." if alone else "")


def describe(found: dict) -> str:
    return f"{found['cores']} cores of {found['processor']}, torch {found['torch']}"


def draw_samples(shown: dict[str, str]) -> None:
    """The grids of recipes side by side, each under the name it is shown by."""
    folder = ROOT / "results" / "recipes"
    grids = [Image.open(folder / name / "samples.png") for name in shown.values()]
    width, height = sum(g.width + 12 for g in grids), grids[0].height + 24
    sheet = Image.new("RGB", (width, height), "white")
    left = 0
    for name, grid in zip(shown, grids, strict=True):
        ImageDraw.Draw(sheet).text((left + 4, 6), name, fill="black")
        sheet.paste(grid, (left, 24))
        left += grid.width + 12
    save(sheet, ROOT / "docs" / "samples.png")


if __name__ == "__main__":
    main()
