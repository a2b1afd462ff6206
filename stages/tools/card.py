"""`tspace card`: what others must know of a recipe's model, in Markdown that the Hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import pipeline
from pipeline import plan
from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError, one_line
from pipeline.evaluation.scores import features_warning
from pipeline.params.recipe import Params
from pipeline.store.files import write_text
from stages import merge
from stages.facts import class_names, facts_of
from stages.numbers import counted, fixed, known, short
from stages.report import costs
from stages.report.results import Written, as_yaml
from stages.report.section import scaled
from stages.report.sections.scores import COLUMNS
from stages.report.write import floor_text
from stages.tools.compare import SCORES, interval_of
from stages.tools.sides import Here
from stages.tools.status import merged
from stages.workspace import Workspace

README = "README.md"
BEGIN = "<!-- written by `tspace card`: what stands above is kept when it is written again -->"
# Sets that have a name on the Hub; others are called by their folder or file.
ON_HUB = {"fashion-mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10"}
# What scores are on which features, so that none passes for another.
FEATURES = {
    "classifier": "a small classifier trained here on this data's {task}",
    "inception": "Inception, 2048 features, as published FIDs use it",
    "dinov2": "DINOv2 ViT-L/14, 1024 features",
}
DISTANCE = "Frechet distance"  # what FID is on other features than Inception's
INTRODUCTION = """\
# {name}

A diffusion model trained by tspace {version} on {images:,} images. `tspace export --recipe {name}`
writes it to a folder that runs by itself.
"""


def write_card(
    workspace: Workspace, name: str, out: Path | None, terms: str | None, milestone: int | None
) -> None:
    """Write the card of a finished recipe to a file or an exported folder; print it without `out`.

    terms: its license, as the Hub names it. milestone: in images; default: that of the exported
    folder, or the last. The words of an exported folder's README.md are kept. UserError for a
    folder of another model, or if the recipe is not finished.
    """
    workspace.known_recipe(name)
    path = out and (out / README if out.is_dir() or out.suffix != ".md" else out)
    model = _model_of(path.parent) if path else None
    images = _milestone(workspace, name, model, milestone)
    before = _words(path, name) if path else ""
    if not before:
        before = INTRODUCTION.format(name=name, version=pipeline.__version__, images=images)
    text = card(workspace, name, images, before, terms, _library(path))
    if path is None:
        print(text, end="")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    print(f"card of {name} at {images:,} images: {path}")


def card(
    workspace: Workspace,
    name: str,
    images: int,
    introduction: str,
    terms: str | None = None,
    library: str = "tspace",
) -> str:
    """The whole card of a recipe at a milestone."""
    side = Here(workspace).side(name)  # refuses what is not finished
    facts, params = facts_of(workspace), workspace.params
    recipe = plan.experts(params, facts)[name]
    run = side.metrics[0]["milestones"][str(images)]
    run |= costs.times(workspace, facts, recipe, images)
    features = workspace.store.entry(plan.features(params, facts).name).load_json("report.json")
    mixture = next(
        item["mixture"] for item in merge.milestones_of(workspace, name) if item["images"] == images
    )
    return "\n".join(
        [
            _metadata(workspace, name, run, features["extractor"], terms, library),
            introduction.strip(),
            "",
            BEGIN,
            "",
            *_data(workspace, facts),
            *_recipe(params, name),
            *_scores(run, features),
            *_cost(run, len(recipe.experts)),
            *_origin(workspace, facts, mixture["digest"], features),
            *_limits(params, name, features),
        ]
    )


def _model_of(folder: Path) -> dict[str, Any] | None:
    """What an exported folder says of itself; None where it says nothing."""
    path = folder / "model.json"
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as e:
        raise UserError(f"{path}: damaged ({one_line(e)}); export the recipe again") from e


def _milestone(
    workspace: Workspace, name: str, model: dict[str, Any] | None, asked: int | None
) -> int:
    """The milestone that a card is about, after checking that a folder holds this very model."""
    recipe = plan.experts(workspace.params, facts_of(workspace))[name]
    if not merged(workspace, name, recipe):
        raise UserError(
            f"card {name}: not trained yet, or params.yaml or the code changed since; run "
            "`dvc repro`"
        )
    digests = {
        item["images"]: item["mixture"]["digest"] for item in merge.milestones_of(workspace, name)
    }
    images = asked or (model["images"] if model else max(digests))
    if images not in digests:
        options = ", ".join(map(str, digests))
        raise UserError(f"--milestone {images}: {name} has no such milestone; one of: {options}")
    if model and model["mixture"]["digest"] != digests[images]:
        raise UserError(
            f"--out: the folder holds {model['recipe']} at {model['images']:,} images, of other "
            f"weights than {name} at {images:,} has now; export it again"
        )
    return images


def _words(path: Path, name: str) -> str:
    """What a README.md says above the card; empty where there is none."""
    if not path.exists():
        return ""
    text = re.sub(r"\A---\n.*?^---\n", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    if not re.match(rf"\s*# {re.escape(name)}[,\n]", text):  # as all formats of export begin
        raise UserError(f"--out: {path} is of something else than {name}; name another file")
    return text.partition(BEGIN)[0].strip()


def _library(path: Path | None) -> str:
    return "diffusers" if path and (path.parent / "model_index.json").exists() else "tspace"


def _metadata(
    workspace: Workspace,
    name: str,
    run: dict[str, Any],
    extractor: str,
    terms: str | None,
    library: str,
) -> str:
    """The block that the Hub reads (https://huggingface.co/docs/hub/model-cards)."""
    data = _dataset_name(workspace)
    # Only Inception's is what the Hub, and everybody, calls FID.
    kinds = {"fid": "fid" if extractor == "inception" else "frechet-distance"}
    found = [
        {
            "type": kinds.get(key, key),
            "name": f"{_title(key, extractor)}, {run['samples']:,} samples",
            "value": run[key],
        }
        for key in SCORES
        if known(run.get(key))
    ]
    task = {"type": "unconditional-image-generation", "name": "Image generation"}
    about: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": task["type"],
        "tags": ["diffusion", "image-generation", "tspace"],
        "datasets": [data],
    }
    if found:  # features that measure nothing give no scores
        result = {"task": task, "dataset": {"type": data, "name": data}, "metrics": found}
        about["metrics"] = [metric["type"] for metric in found]
        about["model-index"] = [{"name": name, "results": [result]}]
    chosen = (
        f"license: {json.dumps(terms)}\n" if terms else "# license: yours to choose, as in `mit`\n"
    )
    text = yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{chosen}{text}---\n"


def _title(key: str, extractor: str) -> str:
    own = {"fid": "FID" if extractor == "inception" else DISTANCE}
    title = own.get(key, next(c.title for c in COLUMNS if c.keys[0] == key).split(" ×")[0])
    return f"{title} on features of {extractor}"


def _dataset_name(workspace: Workspace) -> str:
    data = workspace.params.data
    return ON_HUB.get(data.source) or (Path(data.path).name if data.path else data.source)


def _data(workspace: Workspace, facts: plan.DatasetFacts) -> Iterator[str]:
    info, data = open_dataset(workspace.dataset).info, workspace.params.data
    yield "## Data\n"
    names = list(class_names(workspace))
    classes = counted(len(names), "class", "classes") if names else "no classes"
    yield (
        f"{_dataset_name(workspace)} (`data.source: {data.source}`): {info.rows:,} images of "
        f"{info.resolution}x{info.resolution}, {counted(info.channels, 'channel')}, {classes}; "
        f"{facts.held_out:,} of them held out.\n"
    )


def _recipe(params: Params, name: str) -> Iterator[str]:
    yield "## Recipe\n"
    yield (
        f"All settings, as a `params.yaml` of their own. Keys: docs/params.md of tspace "
        f"{pipeline.__version__}.\n"
    )
    yield f"```yaml\n{as_yaml(alone(params, name))}\n```\n"


def alone(params: Params, name: str) -> dict[str, Any]:
    """A params.yaml of one recipe with those it starts from, or is guided by; no private paths."""
    wanted, recipes = [name], params.recipes
    for one in wanted:
        guide = recipes[one].sampling.guide
        for other in (recipes[one].training.parent, guide and guide.recipe):
            if other and other not in wanted:
                wanted.append(other)
    shared = params.model_dump(mode="json", exclude={"recipes"})
    shared["evaluate"].pop("consistency", None)  # it names other recipes
    if params.data.path and Path(params.data.path).expanduser().is_absolute():
        shared["data"]["path"] = Path(params.data.path).name
    own = {one: recipes[one].model_dump(mode="json") for one in reversed(wanted)}
    return {**shared, "defaults": {}, "recipes": own}


def _scores(run: dict[str, Any], features: dict[str, Any]) -> Iterator[str]:
    extractor = features["extractor"]
    words = FEATURES.get(extractor, "").format(task=features.get("task"))
    yield "## Scores\n"
    yield (
        f"{run['samples']:,} samples against {run['reference_samples']:,} real images, on the "
        f"{features['dimension']:,} features of `{extractor}`"
        f"{words and f' ({words})'}, digest "
        f"`{features['extractor_digest']}`.\n"
    )
    yield "| score | value | 95 % interval |\n|---|---:|---|"
    for column in COLUMNS:
        value = run.get(column.keys[0])
        if column.keys[0] in SCORES and known(value):
            ends = interval_of(column, run) or ()
            text, *around = column.show([scaled(value, column.factor), *ends])
            title = (
                DISTANCE if column.keys[0] == "fid" and extractor != "inception" else column.title
            )
            yield f"| {title} | {text} | {' to '.join(around) or 'not known'} |"
    yield ""
    for sentence in floor_text(run["floor"]):
        yield f"{sentence}\n"
    for key, why in run.get("left_out", {}).items():
        yield f"Not measured: {key} ({why}).\n"


def _cost(run: dict[str, Any], experts: int) -> Iterator[str]:
    yield "## Cost\n"
    machines = ", ".join(map(str, [*run["hosts"], *run["devices"]])) or "an unknown machine"
    seconds = "seconds are not known: it was trained elsewhere"
    if known(run["compute_seconds"]):
        unit = costs.compute_unit({"": run})
        compute, critical = fixed([run["compute_seconds"], run["seconds_critical"]], most=1)
        seconds = f"{compute} {unit}-seconds, {critical} seconds along the longest chain of jobs"
    busy = "; the machine had other work, too" if run["busy"] else ""
    yield (
        f"{run['images_seen']:,} images seen and {short(run['train_flops'], 3)} FLOP in training, "
        f"with all that was trained before it; {counted(experts, 'expert')}, "
        f"{run['parameters']:,} parameters, {run['parameters_active']:,} of them active at a time. "
        f"On {machines}: {seconds}{busy}.\n"
    )


def _origin(
    workspace: Workspace, facts: plan.DatasetFacts, mixture: str, features: dict[str, Any]
) -> Iterator[str]:
    written = Written.now(workspace)
    commit = f"`{written.commit}`" if written.commit else "none (no git)"
    note = " (`+`: with changes that it does not have)" if written.commit.endswith("+") else ""
    yield "## Where it comes from\n"
    yield "| | |\n|---|---|"
    yield f"| tspace | {pipeline.__version__} |"
    yield f"| commit | {commit}{note} |"
    yield f"| model | `{mixture}` |"
    yield f"| dataset | `{facts.digest}` |"
    yield f"| feature extractor | `{features['extractor_digest']}` |\n"
    if written.commit and not written.commit.endswith("+"):
        yield (
            "`dvc repro` at this commit makes the same bits on the same kind of hardware; `tspace "
            "verify` checks it.\n"
        )


def _limits(params: Params, name: str, features: dict[str, Any]) -> Iterator[str]:
    seed = params.recipes[name].seed
    yield "## Limits\n"
    if warning := features_warning(features):
        yield f"- {warning}"
    yield (
        "- Scores are comparable only with those on the same features, of as many samples against "
        "as many real images."
    )
    if features["extractor"] != "inception":
        yield f"- The {DISTANCE} here is not the FID of publications, which is on Inception."
    yield (
        f"- One training run, with seed {params.seed if seed is None else seed}: how much another "
        "seed changes is not in the intervals."
    )
    yield (
        "- It draws what its data shows, errors and biases included. Nobody examined whether it "
        "gives back training images.\n"
    )
