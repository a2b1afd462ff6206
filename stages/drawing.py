"""Pictures of samples: grids, single files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import UserError
from pipeline.files import replacing
from stages.numbers import counted
from stages.workspace import Workspace

SHOWN_PIXELS = 48  # small images are enlarged to at least this size in a grid
LABEL_PIXELS = 12  # for a line of text


def grid(
    images: np.ndarray,
    columns: int,
    enlarge: int | None = None,
    labels: Sequence[str] | None = None,
) -> Image.Image:
    """Images uint8 [N, C, H, W] in rows of `columns`, with a gap, under each its label if given."""
    size = images.shape[-1]
    factor = enlarge or max(1, -(-SHOWN_PIXELS // size))
    cell = size * factor
    rows = -(-len(images) // columns)
    gap = 2
    across, down = cell + gap, cell + gap + (0 if labels is None else LABEL_PIXELS)
    sheet = Image.new("RGB", (columns * across + gap, rows * down + gap), (255, 255, 255))
    for i, image in enumerate(images):
        left, top = gap + i % columns * across, gap + i // columns * down
        tile = as_image(image).convert("RGB").resize((cell, cell), Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
        if labels is not None:
            sheet.paste(_written(labels[i], cell), (left, top + cell))
    return sheet


def _written(text: str, width: int) -> Image.Image:
    """A line of text, cut at the width. Its font is part of Pillow, and so the same everywhere."""
    font = ImageFont.load_default_imagefont()
    line = Image.new("RGB", (width, LABEL_PIXELS), "white")
    known = text.encode("latin-1", "replace").decode("latin-1")
    ImageDraw.Draw(line).text((1, 0), known, fill="black", font=font)
    return line


def pairs(above: np.ndarray, below: np.ndarray, columns: int) -> Image.Image:
    """Images uint8 [N, C, H, W] in rows of `columns`, under each row what became of its images."""
    rows = []
    for start in range(0, len(above), columns):
        rows += [above[start : start + columns], below[start : start + columns]]
    blank = np.full_like(above[:1], 255)
    filled = [np.concatenate([row, *[blank] * (columns - len(row))]) for row in rows]
    return grid(np.concatenate(filled), columns)


def as_image(image: np.ndarray) -> Image.Image:
    """One uint8 [C, H, W] array as a picture."""
    if len(image) == 1:
        return Image.fromarray(image[0])
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG so that the file is complete or absent."""
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def draw_from(workspace: Workspace, name: str, number: int, seed: int, out: Path) -> None:
    """`tspace sample --recipe`: samples of a finished recipe, as `out` ends.

    .png: a grid; .npz: `arr_0`, the images uint8 [N, H, W, C], and `arr_1`, their classes int64 [N]
    where the recipe is told them; no suffix: a folder of single pictures. UserError for others.
    """
    from pipeline import plan
    from pipeline.mixture import Mixture, draw
    from stages import steps
    from stages.fanout import adopt
    from stages.jobs import device

    recipes = workspace.params.recipes
    if name not in recipes:
        raise UserError(f"--recipe {name}: no such recipe; one of: {', '.join(recipes)}")
    suffix = out.suffix.lower()
    if suffix not in ("", ".png", ".npz"):
        raise UserError(f"--out {out}: give a .png or an .npz file, or a folder (without a suffix)")
    if out.exists() and out.is_dir() != (suffix == ""):
        raise UserError(f"--out {out}: {'a folder' if suffix else 'not a folder'}; name another")
    facts = steps.facts_of(workspace)
    recipe = plan.experts(workspace.params, facts)[name]
    for stage in ("latents", "analyses", "experts"):  # a mixture may name its decoder and means
        adopt(workspace, stage)
    mixture = Mixture(
        steps.milestones_of(workspace, name)[-1]["mixture"],
        lambda e: workspace.store.entry(e["entry"]).file(e["file"]),
        device=device(),
    )
    images, classes = draw(
        mixture,
        recipe.sampling_states,
        range(number),
        seed=seed,
        batch=workspace.params.evaluate.batch,
        class_counts=plan.class_counts(workspace.params, facts, recipe),
        **recipe.recipe.sampling.model_dump(mode="json", exclude={"steps"}),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".png":
        names = steps.class_names(workspace)
        labels = None if classes is None else [names[i] for i in classes]
        save(grid(images, max(1, round(number**0.5)), labels=labels), out)
    elif suffix == ".npz":
        arrays = [images.transpose(0, 2, 3, 1), *([] if classes is None else [classes])]
        with replacing(out) as temporary, open(temporary, "wb") as f:
            np.savez(f, *arrays)
    else:
        out.mkdir(exist_ok=True)
        for i, image in enumerate(images):
            save(as_image(image), out / f"{name}-{seed}-{i:06d}.png")
    print(f"{counted(number, 'sample')} of {name}, seed {seed}: {out}")
