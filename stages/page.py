"""`results/report.html`: one self-contained page, the same bytes for the same results."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import platform
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import pipeline
from pipeline import plan
from pipeline.plan import DatasetFacts, Expert, RecipePlan
from stages import charts, steps
from stages.charts import Axis, Series, Strip, Work
from stages.markup import (
    MISSING,
    Html,
    count,
    counted,
    el,
    fixed,
    join,
    known,
    short,
    si,
)
from stages.style import STYLE
from stages.workspace import Workspace

MAX_ROWS = 100  # experts of a recipe in its table
MAX_SHARDS = 3  # sample shards named in a row
EMBEDDED_BYTES = 500_000  # a larger picture is embedded reduced
EMBEDDED_PIXELS = 1200

Metrics = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Trained:
    """One expert of a recipe with what its training left."""

    expert: Expert
    seconds: float  # to the end of its budget
    record: dict[str, Any]
    curve: list[list[float]]  # [images, mean loss]


@dataclass(frozen=True)
class Column:
    """A column of the table of recipes."""

    title: str
    keys: tuple[str, ...]
    show: Callable[[Sequence[Any]], list[str]]
    better: str | None = None  # "lower" or "higher"
    factor: float = 1.0


def _each(show: Callable[[Any], str]) -> Callable[[Sequence[Any]], list[str]]:
    return lambda values: [show(value) for value in values]


def _seconds(values: Sequence[Any]) -> list[str]:
    return fixed(values, most=1)


COLUMNS = (
    Column("FID", ("fid",), fixed, "lower"),
    Column("KID ×10³", ("kid",), fixed, "lower", 1e3),
    Column("precision", ("precision",), fixed, "higher"),
    Column("recall", ("recall",), fixed, "higher"),
    Column("coverage", ("coverage",), fixed, "higher"),
    Column("images", ("images_seen",), _each(count)),
    Column("experts", ("experts",), _each(count)),
    Column("parameters active / total", ("parameters_active", "parameters"), _each(si)),
    Column("training FLOPs", ("train_flops",), _each(si), "lower"),
    Column("seconds in all", ("train_seconds_total",), _seconds, "lower"),
    Column("seconds critical path", ("train_seconds_critical",), _seconds, "lower"),
)


def write_page(
    path: Path,
    workspace: Workspace,
    facts: DatasetFacts,
    recipes: dict[str, RecipePlan],
    metrics: Metrics,
    summary: dict[str, Any],
    pictures: dict[str, Path],
) -> None:
    """Write the page. It needs no network and no script, and holds no time of day.

    metrics: of each recipe, with its `milestones`; summary: what summary.json holds; pictures: a
    PNG of samples of each recipe. UserError if an expert's record or curve is missing or damaged.
    """
    styles = {name: number for number, name in enumerate(recipes)}
    trained = {name: _trained(workspace, recipe) for name, recipe in recipes.items()}
    origins = _origins(workspace, facts, recipes)
    body = join(
        [
            _opening(workspace, facts, recipes, metrics, summary["reference"]),
            _table(metrics, styles),
            _quality_over_cost(metrics, styles, summary["reference"]["floor"]),
            _samples(workspace, recipes, metrics, pictures, styles, origins),
            _schedules(recipes, styles),
            _training(recipes, trained, styles),
            _provenance(workspace, facts, recipes, metrics, summary["reference"], trained, origins),
        ]
    )
    path.write_text(_document(f"tspace: {_title(workspace, recipes)}", body), encoding="utf-8")


def _document(title: str, body: Html) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        Html("\n"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("link", rel="icon", href="data:,"),
        el("title", title),
        el("style", Html(STYLE)),
    )
    return f"<!DOCTYPE html>\n{el('html', head, el('body', el('main', body)), lang='en')}\n"


def _title(workspace: Workspace, recipes: dict[str, RecipePlan]) -> str:
    return f"{counted(len(recipes), 'recipe')} on {workspace.params.data.source}"


def _section(key: str, title: str, *content: Any) -> Html:
    return el("section", el("h2", title, id=key), *content)


def _paragraph(*content: Any, kind: str | None = None) -> Html:
    return el("p", *content, class_=kind)


def _code(value: str) -> Html:
    return el("code", value)


def _scroll(label: str, table: Html) -> Html:
    """A wide table in a box of its own that scrolls, by keyboard too."""
    return el("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)


def _details(title: Any, *content: Any) -> Html:
    return el("details", el("summary", title), *content)


def _rows(head: Sequence[str], rows: Sequence[Sequence[Any]], words: Sequence[str]) -> Html:
    """A plain table; the columns called `words` are text, the others numbers."""
    kinds = ["word" if title in words else None for title in head]
    titles = [el("th", t, class_=k, scope="col") for t, k in zip(head, kinds, strict=True)]
    lines = [
        el("tr", *(el("td", cell, class_=k) for cell, k in zip(row, kinds, strict=True)))
        for row in rows
    ]
    return el("table", el("thead", el("tr", *titles)), el("tbody", *lines))


# --- reading


def _trained(workspace: Workspace, recipe: RecipePlan) -> list[Trained]:
    found = []
    for expert in recipe.experts:
        entry = workspace.store.entry(expert.job.name)
        record = entry.load_json("record.json")
        images = expert.snapshots[recipe.milestones[-1]]
        seconds = record["snapshot_seconds"][str(images)]
        found.append(Trained(expert, seconds, record, entry.load_json("curve.json")))
    return found


@dataclass(frozen=True)
class Origin:
    """The entries that the scores of a recipe at a milestone come from."""

    mixture: str
    samples: list[str]
    scores: str


def _origins(
    workspace: Workspace, facts: DatasetFacts, recipes: dict[str, RecipePlan]
) -> dict[tuple[str, int], Origin]:
    params = workspace.params
    reference = steps.reference_job(workspace, params, facts)
    found = {}
    for name, recipe in recipes.items():
        for item in steps.milestones_of(workspace, name):
            mixture = item["mixture"]
            shards = plan.samples(params, recipe, mixture, name)
            found[name, item["images"]] = Origin(
                f"mixture/{mixture['digest']}",
                [job.name for job in shards],
                plan.scores(params, shards, reference, name).name,
            )
    return found


def _params_file(workspace: Workspace) -> str:
    return (workspace.root / "params.yaml").read_text(encoding="utf-8")


def _own_words(workspace: Workspace) -> dict[str, str]:
    """What each recipe says in params.yaml, as YAML."""
    raw = YAML(typ="safe", pure=True).load(_params_file(workspace))
    return {name: "" if not own else _as_yaml(own, 40) for name, own in raw["recipes"].items()}


def _as_yaml(value: dict[str, Any], width: int = 90) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None  # the innermost level on one line, as in params.yaml
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = width
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue().rstrip()


# --- sections


def _opening(
    workspace: Workspace,
    facts: DatasetFacts,
    recipes: dict[str, RecipePlan],
    metrics: Metrics,
    reference: dict[str, Any],
) -> Html:
    names = list(recipes)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    channels = {1: "grey", 3: "RGB"}.get(facts.channels, f"{facts.channels} channels")
    classes = counted(facts.classes, "class", "classes") if facts.classes else "no labels"
    samples = sorted({found["samples"] for found in metrics.values()})
    drawn = (
        count(samples[0]) if len(samples) == 1 else f"{count(samples[0])} to {count(samples[-1])}"
    )
    floor, size = reference["floor"], facts.resolution
    return join(
        [
            el("h1", _title(workspace, recipes)),
            _paragraph(
                f"{counted(facts.rows, 'image')} of {size} × {size} pixels, {channels}, {classes} "
                "(dataset digest ",
                _code(facts.digest[:16]),
                f"). {counted(len(recipes), 'recipe')}: {shown}. Each is scored with {drawn} "
                f"samples against all images, in the {count(reference['dimension'])} features of "
                f"the extractor {reference['extractor']}. ",
                el("strong", f"The floor is FID {fixed([floor['fid']])[0]}"),
                f": what one half of the real images scores against the other "
                f"({count(floor['samples'])} each), so what chance alone leaves.",
                kind="lead",
            ),
            el(
                "nav",
                *(
                    el("a", title, href=f"#{key}")
                    for key, title in (
                        ("scores", "Scores and costs"),
                        ("cost", "Quality over cost"),
                        ("samples", "Samples"),
                        ("states", "States and experts"),
                        ("training", "Training"),
                        ("provenance", "What was run"),
                    )
                ),
                aria_label="Contents",
            ),
        ]
    )


def _name(name: str, styles: dict[str, int]) -> Html:
    return join([charts.swatch(styles[name]), " ", el("span", name, class_="recipe")])


def _table(metrics: Metrics, styles: dict[str, int]) -> Html:
    head = [el("th", "recipe", class_="word", scope="col")]
    cells: list[list[Html]] = [[] for _ in metrics]
    for column in COLUMNS:
        arrow = {"lower": "\u00a0↓", "higher": "\u00a0↑"}.get(column.better or "", "")
        sign = el("span", arrow, title=f"{column.better} is better") if arrow else None
        head.append(el("th", column.title, sign, scope="col"))
        values = [
            [_scaled(found.get(key), column.factor) for found in metrics.values()]
            for key in column.keys
        ]
        texts = [column.show(part) for part in values]
        best = _best(values[0], texts[0], column.better)
        for row, content in enumerate(zip(*texts, strict=True)):
            shown = " / ".join(content)
            if row in best:
                told = el("span", " (best)", class_="sr")
                cells[row].append(el("td", el("strong", shown), told, class_="best"))
            else:
                cells[row].append(el("td", shown))
    rows = [
        el("tr", el("th", _name(name, styles), class_="word", scope="row"), *own)
        for name, own in zip(metrics, cells, strict=True)
    ]
    table = el("table", el("thead", el("tr", *head)), el("tbody", *rows), class_="main")
    marked = "The best of each column is bold on a shaded ground. " if len(metrics) > 1 else ""
    return _section(
        "scores",
        "Scores and costs",
        _scroll("Scores and costs", table),
        _paragraph(
            marked,
            "Each recipe was trained once, so a small difference may be chance. ",
            el("strong", "Seconds in all"),
            " is the sum over the experts: what one worker needs. ",
            el("strong", "Critical path"),
            " is the longest chain of training jobs: what training takes when every expert has a "
            "worker of its own. A recipe can win the one and lose the other. Parameters active are "
            "those of the largest expert, the only one needed at a time.",
            kind="note",
        ),
        _paragraph(
            "FID: Fréchet distance between the features of samples and of real images. KID: their "
            "kernel distance, without bias, so it can be slightly negative. Precision: share of "
            "samples close to a real image. Recall: share of real images close to a sample. "
            "Coverage: share of real images with a sample among their nearest neighbours.",
            kind="note",
        ),
    )


def _scaled(value: Any, factor: float) -> Any:
    return value * factor if known(value) and factor != 1 else value


def _best(values: Sequence[Any], shown: Sequence[str], better: str | None) -> set[int]:
    """Rows that show the best value; none when all show the same, or there is no better."""
    found = [v for v in values if known(v)]
    if better is None or not found or len(set(shown)) < 2:
        return set()
    best = shown[values.index(min(found) if better == "lower" else max(found))]
    return {row for row, text in enumerate(shown) if text == best}


def _quality_over_cost(metrics: Metrics, styles: dict[str, int], floor: dict[str, Any]) -> Html:
    drawn = _drawn(metrics)
    fids = [m["fid"] for name in drawn for m in metrics[name]["milestones"].values()]
    positive = [v for v in [*fids, floor["fid"]] if v > 0]
    near = floor["fid"] > 0 and (not any(v > 0 for v in fids) or _near(floor["fid"], fids))
    y_axis = Axis.over([*fids, floor["fid"]] if near else fids, log=True)
    reference = (floor["fid"], "real against real") if near and y_axis.log else None

    def over(keys: tuple[str, ...], title: str, label: str, wide: int) -> list[Html]:
        """A figure for each key, on one and the same x axis."""
        values = [
            m[key] for name in drawn for m in metrics[name]["milestones"].values() for key in keys
        ]
        x_axis = Axis.over(values, log=_wide_range(values), zero=True)
        figures = []
        for key, what in zip(keys, title.split("|"), strict=True):
            series = [_series(name, metrics[name], key, styles[name]) for name in drawn]

            def draw(width: int, series: list[Series] = series, what: str = what) -> Html:
                ends = [(s.name, *s.points[-1]) for s in series]
                alt = f"FID against {what}. " + "; ".join(
                    f"{name} ends at FID {short(y)}, {short(x)} {label}" for name, x, y in ends
                )
                return charts.lines(
                    series,
                    width=width,
                    x_label=label,
                    y_label="FID",
                    alt=alt,
                    x_axis=x_axis,
                    y_axis=y_axis,
                    reference=reference,
                )

            caption = el("figcaption", f"FID against {what}")
            figures.append(el("figure", caption, charts.responsive(draw, wide)))
        return figures

    notes = ["Each sign is a milestone at which a snapshot was sampled and scored."]
    if reference is not None:
        notes.append("The dashed line is the floor.")
    elif positive:
        notes.append(f"The floor, FID {fixed([floor['fid']])[0]}, lies outside.")
    if y_axis.log and any(v <= 0 for v in fids):
        notes.append("Values of zero or less lie on the lower edge.")
    if len(drawn) < len(metrics):
        notes.append(f"Drawn: the {len(drawn)} of {len(metrics)} recipes with the lowest FID.")
    return _section(
        "cost",
        "Quality over cost",
        *over(("images_seen",), "images seen, over all experts", "images", charts.WIDE),
        el(
            "div",
            *over(
                ("train_seconds_critical", "train_seconds_total"),
                "seconds on the critical path|seconds in all",
                "seconds",
                charts.HALF,
            ),
            class_="pair",
        ),
        _paragraph(" ".join(notes), kind="note"),
    )


def _drawn(metrics: Metrics) -> list[str]:
    """Recipes in the charts, in their order."""
    ranked = sorted(metrics, key=lambda name: metrics[name]["fid"])[: charts.MAX_LABELS]
    return [name for name in metrics if name in set(ranked)]


def _near(floor: float, fids: Sequence[float]) -> bool:
    """Whether a line at the floor leaves most of the chart to the recipes."""
    positive = [v for v in fids if v > 0]
    return min(positive) / 50 <= floor <= max(positive) * 2


def _wide_range(values: Sequence[float]) -> bool:
    positive = [v for v in values if v > 0]
    return len(positive) == len(values) and max(positive) > 40 * min(positive)


def _series(name: str, found: dict[str, Any], key: str, style: int) -> Series:
    points = sorted((m[key], m["fid"]) for m in found["milestones"].values())
    return Series(name, points, style)


def _samples(
    workspace: Workspace,
    recipes: dict[str, RecipePlan],
    metrics: Metrics,
    pictures: dict[str, Path],
    styles: dict[str, int],
    origins: dict[tuple[str, int], Origin],
) -> Html:
    words = _own_words(workspace)
    cards, reduced = [], False
    fids = fixed([metrics[name]["fid"] for name in recipes])
    for (name, recipe), fid in zip(recipes.items(), fids, strict=True):
        source, width, height, whole = _embedded(pictures[name])
        reduced = reduced or not whole
        alt = f"Grid of samples of {name} after {count(metrics[name]['images_seen'])} images"
        origin = origins[name, recipe.milestones[-1]]
        own = words[name]
        cards.append(
            el(
                "figure",
                el("h3", el("span", _name(name, styles)), el("span", f"FID {fid}", class_="side")),
                el("img", src=source, alt=alt, width=width, height=height),
                el(
                    "figcaption",
                    _paragraph(_in_words(recipe)),
                    el("pre", own) if own else _paragraph("The defaults, unchanged."),
                    _paragraph(
                        el("span", _code(origin.mixture)),
                        *(el("span", _code(n)) for n in origin.samples[:1]),
                        f"and {counted(len(origin.samples) - 1, 'more shard')}"
                        if len(origin.samples) > 1
                        else None,
                        kind="digests",
                    ),
                ),
                class_="card",
            )
        )
    notes = (
        "The first samples that were scored, not chosen; number for number they start from the "
        "same noise in every recipe. Below each: what its recipe sets differently from the "
        "defaults in params.yaml, its mixture and its first samples."
    )
    if reduced:
        notes += (
            " Large pictures are reduced here; beside this page each recipe has its samples.png."
        )
    return _section("samples", "Samples", _paragraph(notes), el("div", *cards, class_="cards"))


def _embedded(path: Path) -> tuple[str, int, int, bool]:
    """A PNG as a data URI, its width and height, and whether it is the whole picture."""
    data, kind, whole = path.read_bytes(), "png", True
    width, height = struct.unpack(">II", data[16:24])
    if len(data) > EMBEDDED_BYTES:
        from PIL import Image

        with Image.open(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((EMBEDDED_PIXELS, EMBEDDED_PIXELS), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        small.save(out, format="JPEG", quality=85)
        data, kind, whole = out.getvalue(), "jpeg", False
        width, height = small.size
    text = base64.b64encode(data).decode()
    return f"data:image/{kind};base64,{text}", width, height, whole


def _in_words(recipe: RecipePlan) -> str:
    states = "Continuous states" if recipe.continuous else counted(len(recipe.log_snr), "state")
    sampling = recipe.recipe.sampling
    visited = counted(len(recipe.sampling_states), "step")
    experts = counted(len(recipe.experts), "expert")
    return f"{states}, {experts}, sampled by {sampling.kind} in {visited}."


def _schedules(recipes: dict[str, RecipePlan], styles: dict[str, int]) -> Html:
    strips = [
        Strip(
            name,
            styles[name],
            [float(v) for v in recipe.log_snr],
            recipe.continuous,
            [(e.first, e.last) for e in recipe.experts],
            recipe.sampling_states,
        )
        for name, recipe in recipes.items()
    ]
    notes = [
        "A tick is a state the recipe trains; it stands on the band of the expert that owns it, "
        "in the upper or the lower half by turns from expert to expert. A dot is a state that "
        "sampling visits. At log-SNR 0 an image is half signal, half noise."
    ]
    if any(s.continuous for s in strips):
        notes.append("A band without ticks is a continuous range.")
    if any(len(s.states) > charts.MAX_TICKS for s in strips):
        notes.append(f"Of more than {charts.MAX_TICKS} states, {charts.MAX_TICKS} are drawn.")
    if any(len(s.owned) > charts.MAX_OWNERS for s in strips):
        notes.append(f"Of more than {charts.MAX_OWNERS} experts no bands are drawn.")
    return _section(
        "states",
        "States and experts",
        el("figure", charts.responsive(lambda width: charts.schedules(strips, width))),
        _paragraph(" ".join(notes), kind="note"),
    )


def _training(
    recipes: dict[str, RecipePlan], trained: dict[str, list[Trained]], styles: dict[str, int]
) -> Html:
    works = [
        Work(name, styles[name], [(_states(t.expert, recipes[name]), t.seconds) for t in own])
        for name, own in trained.items()
    ]
    most = max(len(own) for own in trained.values())
    bars = (
        "The upper bar of a recipe is its experts one after the other, as one worker trains them. "
        "The bars below it are its experts all starting at once, a worker each; the longest is the "
        "critical path."
    )
    if most > charts.MAX_BARS:
        bars += f" Of more than {charts.MAX_BARS} experts the {charts.MAX_BARS} slowest are drawn."
    losses = (
        "Mean loss over stretches of training, in the recipe's own prediction: levels are "
        "comparable only between recipes with the same states and prediction. From faint to "
        "strong: from the cleanest states to the noisiest."
    )
    if most > charts.MAX_CURVES:
        losses += f" Of more than {charts.MAX_CURVES} experts {charts.MAX_CURVES} are drawn."
    return _section(
        "training",
        "Training",
        el("h3", "Where the seconds went"),
        el("figure", charts.responsive(lambda width: charts.timeline(works, width))),
        _paragraph(bars, kind="note"),
        el("h3", "Loss"),
        el("div", *_losses(recipes, trained, styles), class_="panels"),
        _paragraph(losses, kind="note"),
        el("h3", "Jobs"),
        *(_jobs(name, recipes[name], own, styles) for name, own in trained.items()),
    )


def _losses(
    recipes: dict[str, RecipePlan], trained: dict[str, list[Trained]], styles: dict[str, int]
) -> list[Html]:
    kept = {name: charts.thinned(own, charts.MAX_CURVES) for name, own in trained.items()}
    y_axis = Axis.over([v for own in kept.values() for t in own for _, v in t.curve], log=True)
    panels = []
    for name, own in kept.items():
        curves = [
            (_states(t.expert, recipes[name]), [(images, loss) for images, loss in t.curve])
            for t in own
        ]
        last = [t.curve[-1][1] for t in own]
        alt = (
            f"Loss of {name} over its training; at the end {short(min(last))} to {short(max(last))}"
        )
        drawing = charts.loss_curves(curves, y_axis, alt)
        panels.append(el("figure", el("figcaption", _name(name, styles)), drawing))
    return panels


def _states(expert: Expert, recipe: RecipePlan) -> str:
    """Which states an expert owns, numbered from 1, the cleanest."""
    if recipe.continuous:
        return "all"
    if expert.first == expert.last:
        return f"state {expert.first + 1}"
    return f"states {expert.first + 1}–{expert.last + 1}"


def _jobs(name: str, recipe: RecipePlan, own: list[Trained], styles: dict[str, int]) -> Html:
    listed = own[:MAX_ROWS]
    seconds = fixed([t.seconds for t in listed], most=2)
    losses = fixed([t.curve[-1][1] for t in listed], most=4)
    rows = []
    for t, spent, loss in zip(listed, seconds, losses, strict=True):
        ends = (recipe.log_snr[t.expert.last], recipe.log_snr[t.expert.first])
        span = " to ".join(f"{v:.2f}".replace("-", "−") for v in dict.fromkeys(map(float, ends)))
        rows.append(
            [
                _states(t.expert, recipe),
                span,
                count(t.expert.images),
                spent,
                si(t.record["parameters"]),
                si(t.record["flops"]),
                loss,
                _code(t.expert.job.name),
            ]
        )
    head = ["states", "log-SNR", "images", "seconds", "parameters", "FLOPs", "last loss", "entry"]
    more = None
    if len(own) > MAX_ROWS:
        more = _paragraph(
            f"The first {MAX_ROWS} of {len(own):,} experts; all of them are in "
            "artefacts/experts/manifest.json.",
            kind="note",
        )
    title = join([_name(name, styles), f": {counted(len(own), 'expert')}"])
    table = _rows(head, rows, words=("states", "entry"))
    return _details(title, _scroll(f"Jobs of {name}", table), more)


def _provenance(
    workspace: Workspace,
    facts: DatasetFacts,
    recipes: dict[str, RecipePlan],
    metrics: Metrics,
    reference: dict[str, Any],
    trained: dict[str, list[Trained]],
    origins: dict[tuple[str, int], Origin],
) -> Html:
    params = workspace.params
    devices = sorted({str(t.record["device"]) for own in trained.values() for t in own})
    shards = [job.name for job in plan.latents(params, facts)]
    entries = [
        ("dataset", _code(facts.digest)),
        ("latents", _listed(shards)),
        ("features of the real images", _code(steps.reference_job(workspace, params, facts).name)),
        ("feature extractor", _extractor(reference)),
    ]
    versions = [
        ("tspace", pipeline.__version__),
        ("Python", platform.python_version()),
        *((name, _version(name)) for name in ("torch", "numpy", "scipy")),
        ("device", ", ".join(devices)),
    ]
    code = [(f"code of {kind}", _code(plan.code_of(kind))) for kind in plan.CODE]
    keys = ("fid", "kid", "train_seconds_total", "train_seconds_critical")
    found = [
        (name, milestone, metrics[name]["milestones"][str(milestone)])
        for name, recipe in recipes.items()
        for milestone in recipe.milestones
    ]
    columns = [
        fixed([_scaled(m.get(key), 1e3 if key == "kid" else 1) for _, _, m in found], most=most)
        for key, most in zip(keys, (3, 3, 1, 1), strict=True)
    ]
    rows = [
        [
            name,
            count(milestone),
            *numbers,
            _code(origins[name, milestone].scores),
            _listed(origins[name, milestone].samples),
            _code(origins[name, milestone].mixture),
        ]
        for (name, milestone, _), numbers in zip(found, zip(*columns, strict=True), strict=True)
    ]
    head = [
        "recipe",
        "images",
        "FID",
        "KID ×10³",
        "s in all",
        "s critical",
        "scores",
        "samples",
        "mixture",
    ]
    table = _rows(head, rows, words=("recipe", "scores", "samples", "mixture"))
    resolved = _as_yaml(params.model_dump(mode="json"))
    return _section(
        "provenance",
        "What was run",
        _paragraph(
            "Every number on this page is read from an entry of the store, which is named by the "
            "digest of everything that determines it: scores from the scores entries below, "
            "seconds, FLOPs and losses from the expert entries listed under Training. ",
            f"Everything random follows from seed {params.seed}; samples are drawn with seed "
            f"{params.evaluate.seed}.",
        ),
        _details(
            "Scores at every milestone, with their entries",
            _scroll("Scores at every milestone", table),
        ),
        _details("Data, versions and code", _pairs([*entries, *versions, *code])),
        _details("params.yaml", el("pre", _params_file(workspace).rstrip())),
        _details("params.yaml resolved: every recipe in full", el("pre", resolved)),
    )


def _extractor(reference: dict[str, Any]) -> str:
    """Name of the feature extractor and what its training reported."""
    known_facts = [
        f"{key} {short(value) if known(value) else value}"
        for key, value in reference.items()
        if key not in ("extractor", "floor") and not isinstance(value, dict | list)
    ]
    return ", ".join([str(reference["extractor"]), *known_facts])


def _listed(names: Sequence[str]) -> Html:
    more = len(names) - MAX_SHARDS
    parts = [el("span", _code(name)) for name in names[:MAX_SHARDS]]
    if more > 0:
        parts.append(el("span", f"and {more:,} more"))
    return el("span", *parts, class_="listed")


def _pairs(pairs: Sequence[tuple[str, Any]]) -> Html:
    return el("dl", *(join([el("dt", key), el("dd", value)]) for key, value in pairs))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING
