"""`tspace export`: a finished recipe as a folder that can be given away."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pipeline
from pipeline import plan
from pipeline.errors import UserError
from pipeline.specs import File
from pipeline.store.files import write_json, write_text
from stages import merge, sample
from stages.facts import class_names, facts_of
from stages.fanout import adopt
from stages.inputs import checked_file, mixture_of
from stages.numbers import counted
from stages.tools.standalone import standalone
from stages.tools.status import merged
from stages.workspace import Workspace

GUIDE = "guide/"  # the folder of what guidance leads away from
SHOWN_CLASSES = 20  # in the README; model.json has all

README = """\
# {recipe}

A diffusion model trained by tspace {version} on {images:,} images:
{what}, {classes}.

| file | answers at log-SNR |
|---|---|
{table}

`model.json` says the rest: networks, log-SNRs, what the networks predict, shift and scale of the
data, the sampler, `classes` by label, and the checksum of each file.{guide}
`model/` is its code. Draw with {needs} alone:

    python sample.py -n 64 --seed 0 --out samples.png     # or samples.npz

In a program, in this folder:

    from model import load

    model = load("cuda")                                   # or "cpu"
    images, labels = model.sample(range(64), seed=0)       # uint8 [64, C, H, W]
    model.networks(x, log_snr)                             # the denoiser: E[z | x], x [N, C, H, W]

With tspace installed, `tspace.load(folder).draw(range(64), seed=0)` does the same.
{same}
"""


def export_recipe(
    workspace: Workspace, name: str, out: Path, milestone: int | None = None, kind: str = "folder"
) -> None:
    """Write the model of a recipe, at a milestone (images; default the last one), to `out`.

    kind: `folder` (it runs by itself), `diffusers`, `programs` or `onnx`. UserError for an unknown
    recipe or milestone, for a folder that is not empty, if the recipe is not finished, or for a
    model that cannot be of that kind. `out` holds the whole model or nothing.
    """
    workspace.known_recipe(name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty folder; name a new one")
    milestones = [item["images"] for item in merge.milestones_of(workspace, name)]
    images = milestones[-1] if milestone is None else milestone
    if images not in milestones:
        known = ", ".join(map(str, milestones))
        raise UserError(f"--milestone {images}: {name} has no such milestone; one of: {known}")
    facts = facts_of(workspace)
    recipe = plan.experts(workspace.params, facts)[name]
    if not merged(workspace, name, recipe):
        raise UserError(
            f"--recipe {name}: params.yaml or the code changed since it was trained; run "
            "`dvc repro merge`, or check out the settings it was trained with"
        )
    for stage in ("latents", "analyses", "experts"):
        adopt(workspace, stage)
    # The jobs that draw the scored samples say how this recipe is sampled.
    jobs = sample.sample_jobs(workspace, workspace.params, facts, {name: recipe})
    spec = jobs[name, images][0].spec
    out = out.absolute()
    fresh = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        fresh.mkdir(parents=True)
        if kind == "folder":
            _write_folder(workspace, name, images, spec, images == milestones[-1], fresh)
        else:
            _write_as(kind, workspace, name, images, spec, fresh)
        os.replace(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{name} at {images:,} images: {out} ({size / 1e6:.1f} MB)")


def _write_folder(
    workspace: Workspace, name: str, images: int, spec: Any, at_end: bool, folder: Path
) -> None:
    """The folder that runs by itself; spec: of a job that draws samples of the recipe."""
    from pipeline.sampling.exported import FORMAT, MODEL

    drawing = _drawing(spec)
    model = {
        "format": FORMAT,
        "tspace": pipeline.__version__,
        "recipe": name,
        "images": images,
        "mixture": spec.mixture,
        "classes": list(class_names(workspace)) if spec.mixture["classes"] else None,
        "drawing": drawing.model_dump(mode="json"),
        "files": _copy_files(workspace, spec.mixture, folder, drawing.guide),
    }
    write_json(folder / MODEL, model)
    standalone(model, drawing, folder)
    write_text(folder / "README.md", _readme(model, drawing.guide is not None, at_end))


def _write_as(
    kind: str, workspace: Workspace, name: str, images: int, spec: Any, folder: Path
) -> None:
    """The model in the form of another package, from the store's files."""
    from pipeline.sampling.exported import Exported

    if "router" in spec.mixture:
        raise UserError(
            f"--format {kind}: recipe {name} has partition: {{kind: data}}, whose router chooses a "
            "network for each sample; export without --format"
        )
    mixture = mixture_of(spec.mixture, workspace.store, workspace)
    model = Exported(name, images, mixture, _drawing(spec))
    if kind == "diffusers":
        from stages.tools.to_diffusers import write_diffusers

        write_diffusers(model, folder)
    else:
        from stages.tools.programs import write_programs

        write_programs(model, kind, folder)


def _drawing(spec: Any) -> Any:
    """How a job's spec draws samples."""
    from pipeline.sampling.exported import Drawing

    return Drawing(**{key: getattr(spec, key) for key in Drawing.model_fields})


def _copy_files(
    workspace: Workspace, mixture: dict[str, Any], folder: Path, guide: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Copy each file of a mixture, and of its guide, once; where it is, by its name in the store.

    Those of the mixture say which of its states they serve.
    """
    from pipeline.sampling.exported import SOURCES, members, sources

    placed: dict[tuple[str, str], str] = {}  # by member and checksum
    files: dict[str, dict[str, Any]] = {}
    parts = [("", *part) for part in members(mixture)]
    parts += [(GUIDE, *part) for part in (members(guide) if guide else ())]
    for under, name, member, wanted in parts:
        entry = workspace.store.entry(member["entry"])
        for file in wanted:
            source, known = entry.file(file), entry.files()[file]
            path = placed.get((name, known["sha256"]))
            if path is None:
                path = f"{under}{name}/{_called(member, file)}"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / path)
                placed[name, known["sha256"]] = path
            found = files.setdefault(f"{member['entry']}/{file}", {"path": path, **known})
            if "first" in member and not under:  # from 1
                found.setdefault("states", []).append([member["first"] + 1, member["last"] + 1])
    for name, sha256 in (sources(mixture) | (sources(guide) if guide else {})).items():
        source = checked_file(workspace, File(path=name, sha256=sha256))
        target = folder / SOURCES / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        size = target.stat().st_size
        files[name] = {"path": f"{SOURCES}/{name}", "bytes": size, "sha256": sha256}
    return files


def _called(member: dict[str, Any], file: str) -> str:
    if "first" not in member:
        return file
    first, last = member["first"] + 1, member["last"] + 1
    states = f"state-{first}" if first == last else f"states-{first}-{last}"
    cluster = f"cluster-{member['cluster'] + 1}-" if "cluster" in member else ""
    return f"{cluster}{states}.safetensors"


SAME = """\
On the same kind of hardware, with the same torch, these are the images that `tspace sample --recipe
{recipe}` draws with the same seed; only its PNG differs, where small images are enlarged."""
GUIDED = "\n`guide/` holds the worse model that guidance leads samples away from."
ROUTED = """
`router/` tells how probable each cluster of the data is for a noisy image; of their experts the
most probable answer, {top} for a sample at a time."""
EARLIER = "`tspace sample` draws from the recipe's last milestone, so not from this model."


def _readme(model: dict[str, Any], guided: bool, at_end: bool) -> str:
    """guided: whether there is a guide; at_end: whether the model is of the last milestone."""
    mixture = model["mixture"]
    log_snr = mixture["log_snr"]
    rows: dict[str, list[str]] = {}  # a decoder answers at no state
    for file in model["files"].values():
        for first, last in file.get("states", []):
            ends = [f"{float(log_snr[i - 1]):.4g}" for i in sorted({first, last})]
            rows.setdefault(file["path"], []).append(" to ".join(ends))
    routed = ROUTED.format(top=mixture["top"]) if "router" in mixture else ""
    return README.format(
        recipe=model["recipe"],
        version=model["tspace"],
        images=model["images"],
        what=_seen(mixture),
        classes=_classes(model["classes"]),
        guide=(GUIDED if guided else "") + routed,
        needs=_needs(mixture),
        same=SAME.format(recipe=model["recipe"]) if at_end else EARLIER,
        table="\n".join(f"| `{path}` | {', '.join(runs)} |" for path, runs in rows.items()),
    )


def _classes(names: list[str] | None) -> str:
    if names is None:
        return "without classes"
    shown = ", ".join(f"{label} {name}" for label, name in enumerate(names[:SHOWN_CLASSES]))
    more = f" and {len(names) - SHOWN_CLASSES:,} more" if len(names) > SHOWN_CLASSES else ""
    return f"{counted(len(names), 'class', 'classes')} (label and name: {shown}{more})"


def _needs(mixture: dict[str, Any]) -> str:
    """The packages that `model/` needs."""
    kinds = {expert["network"]["kind"] for expert in mixture["experts"]}
    return "torch, safetensors and diffusers" if "diffusers" in kinds else "torch and safetensors"


def _seen(mixture: dict[str, Any]) -> str:
    """What the networks see."""
    size = f"{mixture['resolution']}x{mixture['resolution']}"
    kind = "latents, decoded into images by `decoder/`" if mixture.get("decoder") else "pixels"
    return f"{size}, {counted(mixture['channels'], 'channel')} of {kind}"
