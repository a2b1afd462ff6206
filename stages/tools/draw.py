"""`tspace sample --recipe`: samples of a finished recipe, as pictures or as data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
from pydantic import Field, TypeAdapter

from pipeline import plan
from pipeline.errors import UserError
from pipeline.params.checks import contradictions
from pipeline.params.mistakes import nearest
from pipeline.params.recipe import Recipe
from pipeline.sampling.params import Sampling, Walk
from pipeline.store.files import replacing
from stages.facts import class_names, facts_of
from stages.fanout import adopt
from stages.inputs import mixture_of
from stages.merge import guide_of, milestones_of
from stages.numbers import counted
from stages.pictures import as_image, grid, save
from stages.workspace import Workspace

SAMPLING = TypeAdapter(Annotated[Sampling, Field(discriminator="kind")])
KINDS = [get_args(form.model_fields["kind"].annotation)[0] for form in get_args(Sampling)]
OPTIONS = {"sampling.steps": "--steps", "sampling.guidance": "--guidance"}
LONGEST_NAME = 40  # of a class in a file's name

# Images uint8 [n, C, H, W], their classes or None, and the number of the first one.
Piece = tuple[np.ndarray, np.ndarray | None, int]


def draw_from(
    workspace: Workspace,
    name: str,
    number: int,
    seed: int,
    out: Path,
    *,
    classes: Sequence[str] = (),
    guidance: float | None = None,
    steps: int | None = None,
    sampler: str | None = None,
) -> None:
    """Write samples 0 .. `number` - 1 of a seed, as `out` ends.

    .png: a grid. .npz: `arr_0`, the images uint8 [N, H, W, C], and `arr_1`, their classes int64 [N]
    where the recipe is told them, as the evaluator of guided-diffusion reads it. .parquet: as
    Hugging Face writes images. No suffix: a folder of single pictures, with the class in each name.

    classes: by name or label; none: as they are sampled for scoring. guidance, steps, sampler: in
    place of the recipe's own. UserError for what the recipe cannot do.
    """
    from pipeline.sampling.mixture import draw

    workspace.known_recipe(name)
    recipes = workspace.params.recipes
    write = _writer(out)
    facts = facts_of(workspace)
    drawn_by = _with(recipes[name], guidance, steps, sampler)
    params = workspace.params.model_copy(update={"recipes": recipes | {name: drawn_by}})
    recipe = plan.experts(params, facts)[name]
    names = class_names(workspace)
    counts = _class_counts(classes, names, plan.class_counts(params, facts, recipe), facts)
    for stage in ("latents", "analyses", "experts"):  # a mixture may name its decoder and means
        adopt(workspace, stage)
    last = milestones_of(workspace, name)[-1]
    led = plan.led_of(recipe, guide_of(workspace, recipe, last["images"]))
    mixture = mixture_of(last["mixture"], workspace.store, workspace, led)

    def pieces() -> Iterator[Piece]:
        for first in range(0, number, params.evaluate.shard):
            rows = range(first, min(first + params.evaluate.shard, number))
            images, labels = draw(
                mixture,
                recipe.sampling_states,
                rows,
                seed=seed,
                batch=params.evaluate.batch,
                class_counts=counts,
                sampling=drawn_by.sampling,
            )
            yield images, labels, first

    out.parent.mkdir(parents=True, exist_ok=True)
    write(pieces(), out, names if counts else (), f"{name}-{seed}")
    print(f"{counted(number, 'sample')} of {name}, seed {seed}: {out}")


def _with(recipe: Recipe, guidance: float | None, steps: int | None, sampler: str | None) -> Recipe:
    """The recipe, sampled in another way."""
    own = recipe.sampling
    if sampler is not None and sampler != own.kind:
        if sampler not in KINDS:
            raise UserError(f"--sampler {sampler}: no such sampler; {nearest(sampler, KINDS)}")
        kept = {key: getattr(own, key) for key in Walk.model_fields}
        own = SAMPLING.validate_python({"kind": sampler, **kept})
    if guidance is not None:
        own = own.model_copy(update={"guidance": guidance})
        if guidance == 1:
            own = own.without("guidance_interval", "guide")
    if steps is not None:
        own = own.model_copy(update={"steps": steps})
    changed = recipe.model_copy(update={"sampling": own})
    for key, text in contradictions(changed):
        raise UserError(f"{OPTIONS.get(key, key)}: {text}")
    return changed


def _class_counts(
    wanted: Sequence[str], names: Sequence[str], usual: list[int], facts: plan.DatasetFacts
) -> list[int]:
    """In which proportions to draw classes; [] for a recipe that does not know them."""
    if not wanted:
        return usual
    if not usual:
        raise UserError(
            "--class: this recipe does not know classes (network.class_conditional: false)"
        )
    counts = [0] * len(names)
    for text in wanted:
        if text in names:
            label = names.index(text)
        elif text.isdecimal() and int(text) < len(names):
            label = int(text)
        else:
            raise UserError(f"--class {text}: no such class; {nearest(text, list(names))}")
        if not facts.class_counts[label]:
            raise UserError(f"--class {text}: no image of this class was trained on; name another")
        counts[label] = 1
    return counts


Write = Callable[[Iterable[Piece], Path, Sequence[str], str], None]


def _writer(out: Path) -> Write:
    """What writes to a file, or folder, of this name. names: of the classes, () without any."""
    suffix = out.suffix.lower()
    if suffix not in WRITERS:
        raise UserError(
            f"--out {out}: give a .png, .npz or .parquet file, or a folder (without a suffix)"
        )
    if out.exists() and out.is_dir() != (suffix == ""):
        raise UserError(f"--out {out}: {'a folder' if suffix else 'not a folder'}; name another")
    return WRITERS[suffix]


def _whole(pieces: Iterable[Piece]) -> tuple[np.ndarray, np.ndarray | None]:
    images, labels, _ = zip(*pieces, strict=True)
    return np.concatenate(images), None if labels[0] is None else np.concatenate(labels)


def _write_grid(pieces: Iterable[Piece], out: Path, names: Sequence[str], stem: str) -> None:
    images, labels = _whole(pieces)
    texts = None if labels is None else [names[i] for i in labels]
    save(grid(images, max(1, round(len(images) ** 0.5)), labels=texts), out)


def _write_npz(pieces: Iterable[Piece], out: Path, names: Sequence[str], stem: str) -> None:
    images, labels = _whole(pieces)
    arrays = [images.transpose(0, 2, 3, 1), *([] if labels is None else [labels])]
    with replacing(out) as temporary, open(temporary, "wb") as f:
        np.savez(f, *arrays)


def _write_folder(pieces: Iterable[Piece], out: Path, names: Sequence[str], stem: str) -> None:
    out.mkdir(exist_ok=True)
    for images, labels, first in pieces:
        for i, image in enumerate(images):
            kind = "" if labels is None else f"-{_in_file_name(names[labels[i]])}"
            save(as_image(image), out / f"{stem}-{first + i:06d}{kind}.png")


def _in_file_name(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text)[:LONGEST_NAME]


def _write_parquet(pieces: Iterable[Piece], out: Path, names: Sequence[str], stem: str) -> None:
    with _parquet(out, names) as write:
        for images, labels, first in pieces:
            encoded = []
            for i, image in enumerate(images):
                file = BytesIO()
                as_image(image).save(file, format="PNG")
                encoded.append({"bytes": file.getvalue(), "path": f"{stem}-{first + i:06d}.png"})
            write({"image": encoded, **({} if labels is None else {"label": labels})})


@contextmanager
def _parquet(out: Path, names: Sequence[str]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A Parquet file as `datasets` of Hugging Face reads it; what is given is a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if names:
        fields.append(("label", pa.int64()))
        features["label"] = {"names": list(names), "_type": "ClassLabel"}
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema(fields, metadata=noted)
    with replacing(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        yield lambda columns: writer.write_table(pa.table(columns, schema=schema))


WRITERS: dict[str, Write] = {
    ".png": _write_grid,
    ".npz": _write_npz,
    ".parquet": _write_parquet,
    "": _write_folder,
}
