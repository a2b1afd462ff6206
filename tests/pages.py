"""A project with made-up results, its report page, and a strict parser of that page."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from pipeline import plan
from pipeline.store.entry import Entry
from pipeline.store.files import write_json, write_sealed
from pipeline.store.identity import digest
from stages.report import costs
from stages.report.page import sections_of, write_page
from stages.report.results import Pictures, Results, Written, read
from stages.report.write import recipe_times
from stages.workspace import Workspace

HEAD = """\
seed: 0
latent: {encoder: pixels}
features: {extractor: classifier}
data: {source: digits}
evaluate: {samples: 500, shard: 300}
defaults:
  network: {channels: 8}
  training: {images: 6000, batch: 16, milestones: [1500, 3000]}
  sampling: {kind: ddim}
recipes:
"""
DEFAULT = f"""{HEAD}\
  ddpm:
    schedule: {{kind: linear, states: 1000}}
    sampling: {{steps: 50}}
  few-state:
    schedule: {{kind: log-snr, states: 12, log_snr_max: 6, log_snr_min: -6}}
  disentangled_12:
    schedule: {{kind: log-snr, states: 12, log_snr_max: 6, log_snr_min: -6}}
    partition: {{kind: per-state}}
"""
FLOOR = {
    **{"fid": 0.0617, "samples": 1797, "reference_samples": 1797},
    "measured": {"fid": 0.1234, "samples": 898, "reference_samples": 899},
}
SPECTRUM = [float(v) for v in 64 * 0.8 ** np.arange(64) / np.sum(0.8 ** np.arange(64))]
BOUNDS = {
    "bounds": [3.0, -2.5],
    "curves": {
        "time": [0.125, 0.375, 0.625, 0.875],
        "log_snr": [6.75, 2.25, -2.25, -6.75],
        "s0": [1.0, 0.7, 0.3, 0.1],
        "s1": [0.0, 0.2, 0.6, 1.0],
    },
    "matrix": [[1.0, 0.5, 0.1], [0.5, 1.0, 0.6], [0.1, 0.6, 1.0]],
    "log_snr": [9.0, 0.0, -9.0],
    "sensitivity": [
        {"alpha": 0.9, "eta": 0.1, "draws": 40, "repeats": 2, "usable": 1}
        | {"time_1": 0.3, "std_1": 0.0, "log_snr_1": 3.0}
        | {"time_2": 0.6, "std_2": 0.0, "log_snr_2": -2.5},
        {"alpha": 0.99, "eta": 0.1, "draws": 40, "repeats": 2, "usable": 0}
        | dict.fromkeys(("time_1", "std_1", "log_snr_1", "time_2", "std_2", "log_snr_2")),
    ],
}
# 64 values of unit variance: |x|^2 + d is 128, of which the cost cuts its share.
KNN = {"cost": 106.24, "distance_cut_percent": 17.0, "alignment_percent": 10.5, "noise_std": 0.9341}
DIAGNOSTICS = {
    "knn-l2": KNN
    | {"noise_mean": 0.67, "noise_mean_error": 0.02, "mean_share": 0.33}
    | {"component_variance": [1.01, 0.97], "component_correlation": [0.3, 0.2]},
    "assignment": {"cost": 110.0, "distance_cut_percent": 14.1, "alignment_percent": 14.1}
    | {"noise_mean": 0.01, "noise_mean_error": 0.02, "mean_share": 0.33}
    | {"noise_std": 1.001, "component_variance": [0.98], "component_correlation": [0.7]}
    | {"class_leak": 0.31, "class_chance": 0.1},
    "semidiscrete": {"cost": 109.0, "distance_cut_percent": 14.9, "alignment_percent": 14.9}
    | {"noise_mean": 0.01, "noise_mean_error": 0.02, "mean_share": 0.33, "unevenness": 0.12}
    | {"noise_std": 1.001, "component_variance": [0.98], "component_correlation": [0.7]},
}
MERGED = {
    "relative_norms": [0.04, 0.03],
    "cosines": [[1.0, 0.125], [0.125, 1.0]],
    "sign_conflict": 0.47,
    "weights": [0.75, 1.25],
    "loss": 1.93,
    "loss_of_average": 1.97,
    "evaluations": 9,
    "fid": [[[0.75, 1.25], 5.25], [[1.5, 0.0], 5.75]],
    "search": "quadratic",
}
SEARCH = 2.5  # seconds
CPU = 0.9  # CPU-seconds in a second
VOID = {"meta", "link", "img", "br", "col"}


WRITTEN = Written("2026-01-02 03:04 UTC", "c0ffee", "AMD EPYC", 2)
SUMMARY_DIGEST = "5" * 64


def project(root, params=DEFAULT, *, classes=10, scores=None, side=64, extractor="classifier"):
    """What results are read from, and the page's path first; with made-up training and scores.

    scores: (number of the recipe, share of the budget) -> values that replace the made-up ones.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(params)
    workspace = Workspace(root)
    counts = (180,) * classes
    held_out = workspace.params.data.holdout
    seen = ("d1" * 32, 1797 - held_out, 8, 1, classes, (77.0,), (96.0,), held_out)
    facts = plan.DatasetFacts(*seen, class_counts=counts)
    facts = analysed(workspace, facts)
    recipes = plan.experts(workspace.params, facts)
    for recipe in recipes.values():
        for expert in recipe.experts:
            finish(workspace, expert.job)
            for job in expert.pairings:
                finish_with(
                    workspace, job, "diagnostics.json", DIAGNOSTICS[job.spec.settings.method]
                )
        for job in recipe.merged.values():
            entry = finish_with(workspace, job, "report.json", MERGED)
            write_circumstances(entry, SEARCH)
    times = recipe_times(workspace, facts, recipes)
    metrics, pictures = {}, {}
    for number, (name, recipe) in enumerate(recipes.items()):
        mixtures = [
            {
                "images": m,
                "mixture": {
                    "digest": digest([name, m]),
                    "experts": [{"entry": e.job.name} for e in recipe.experts],
                },
            }
            for m in recipe.milestones
        ]
        folder = workspace.artefacts("mixtures")
        folder.mkdir(parents=True, exist_ok=True)
        write_sealed(folder / f"{name}.json", {"milestones": mixtures})
        found = {}
        for milestone in recipe.milestones:
            share = milestone / recipe.milestones[-1]
            fid = (0.31 + 0.17 * number) / share
            own = {"fid": fid, "kid": fid / 300, "precision": 0.7 + 0.01 * number}
            own |= {"recall": 0.61234, "density": 0.9, "coverage": 0.83 - 0.02 * number}
            own |= {"samples": 500, **costs.costs(workspace, facts, recipe, milestone)}
            own |= times[name]["milestones"][str(milestone)]
            found[str(milestone)] = own | (scores(number, share) if scores else {})
        metrics[name] = {**times[name], **found[str(recipe.milestones[-1])], "milestones": found}
        pictures[name] = root / f"{name}.png"
        noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(pictures[name])
    summary = {"reference": {"extractor": extractor, "dimension": 64, "floor": FLOOR}}
    return [root / "report.html", workspace, facts, recipes, metrics, summary, pictures]


def analysed(workspace, facts) -> plan.DatasetFacts:
    """The facts with all analyses made up; partitions cut states that analyses give."""
    found: dict = {}
    while True:
        facts = dataclasses.replace(facts, analyses=dict(found))
        jobs = plan.analyses(workspace.params, facts)
        if all(job.kind == "expert" or job.name in found for job in jobs):
            return facts
        for job in jobs:
            if job.kind == "expert":
                finish(workspace, job)
            elif job.kind == "spectrum":
                found[job.name] = {"spectrum": SPECTRUM}
            elif job.kind == "bounds":
                found[job.name] = BOUNDS
            else:
                found[job.name] = piloted(job.spec.levels, job.spec.gradients)


def piloted(levels, gradients: bool) -> dict:
    """Errors and gradients of a pilot run as if the data were Gaussian."""
    levels = np.array(levels)
    found = {"log_snr": levels.tolist(), "error": (1 / (1 + np.exp(levels))).tolist()}
    if gradients:
        found["affinity"] = np.cos((levels[:, None] - levels) / 4).tolist()
    return found


def finish(workspace, job) -> None:
    """A finished entry of an expert's job, unless another recipe has made it."""
    entry = workspace.store.plan("expert", job.spec.as_json())
    if entry.done:
        return
    snr, budget = float(np.mean(job.spec.log_snr)), job.spec.images
    level = 0.05 + 0.9 / (1 + math.exp(-snr / 2))
    seconds = budget * 0.0123 * (1 + 0.1 * math.sin(snr))
    images = [round(budget * k / 50) or 1 for k in range(1, 51)]
    write_json(entry.path / "curve.json", [[i, level * (1 + 30 / (i + 30))] for i in images])
    record = {"images": budget, "parameters": 60123, "flops": 1.5e6 * budget}
    write_json(entry.path / "record.json", record)
    entry.finish()
    shares = {str(snapshot): snapshot / budget for snapshot in job.spec.snapshots}
    write_circumstances(entry, seconds, shares)


def finish_with(workspace, job, file: str, content: dict) -> Entry:
    """A finished entry with one JSON file."""
    entry = workspace.store.plan(job.kind, job.spec.as_json())
    if not entry.done:
        write_json(entry.path / file, content)
        entry.finish()
    return entry


def write_circumstances(entry, seconds: float, shares: dict | None = None, **others) -> None:
    """That an entry took so long on a made-up machine; shares: of its snapshots."""
    known = {"seconds": seconds, "cpu_seconds": CPU * seconds, "device_seconds": None}
    known |= {"device": "cpu", "host": "AMD EPYC", "cores": 2, "threads": 1, "load": 0.5}
    for key in ("seconds", "cpu_seconds"):
        known[f"snapshot_{key}"] = {at: known[key] * share for at, share in (shares or {}).items()}
    write_sealed(entry.path / "circumstances.json", known | others)


class Page(HTMLParser):
    """Parses strictly: every element closed in order; keeps attributes, texts and tables."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.source = source
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def all(self, tag, **attributes):
        return [a for t, a in self.elements if t == tag and attributes.items() <= a.items()]

    @property
    def text(self) -> str:
        """All words, as a browser flows them."""
        found = " ".join(text for tag, text in self.texts if tag not in ("style", "pre"))
        return re.sub(r"[ \n]+", " ", found)

    @property
    def preformatted(self) -> list[str]:
        return [text for tag, text in self.texts if tag == "pre"]

    @property
    def drawn(self) -> list[str]:
        """Texts in drawings."""
        return [text for tag, text in self.texts if tag == "text"]


def results_of(arguments) -> Results:
    _, workspace, facts, recipes, metrics, summary, pictures = arguments
    shown = Pictures(pictures)
    return read(workspace, facts, recipes, metrics, summary, SUMMARY_DIGEST, shown, WRITTEN)


def written(arguments) -> Page:
    results = results_of(arguments)
    write_page(arguments[0], results, sections_of(results))
    return Page(arguments[0].read_text(encoding="utf-8"))


def check_self_contained(page: Page) -> None:
    outside = re.sub(r"base64,[^\"]*", "", page.source)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|<script|<iframe|\bon\w+=", outside)
    for _, attributes in page.elements:
        for key in ("src", "href", "xlink:href", "data", "srcset"):
            assert (attributes.get(key) or "data:").startswith(("data:", "#"))
    for number in re.findall(r'(?:\bd|points|x|y|width|height|viewBox)="([^"]*)"', page.source):
        assert not re.search(r"nan|inf|e[+-]", number), number
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for target in page.all("a"):
        assert target["href"][1:] in ids
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.all("svg"))
