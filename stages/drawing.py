"""Pictures of samples: grids, single files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import UserError
from stages.workspace import Workspace

SHOWN_PIXELS = 48  # small images are enlarged to at least this size in a grid


def grid(images: np.ndarray, columns: int, enlarge: int | None = None) -> Image.Image:
    """Images uint8 [N, C, H, W] in rows of `columns`, one background pixel between them."""
    size = images.shape[-1]
    factor = enlarge or max(1, -(-SHOWN_PIXELS // size))
    cell = size * factor
    rows = -(-len(images) // columns)
    gap = 2
    sheet = Image.new(
        "RGB", (columns * (cell + gap) + gap, rows * (cell + gap) + gap), (255, 255, 255)
    )
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        tile = as_image(image).convert("RGB").resize((cell, cell), Image.Resampling.NEAREST)
        sheet.paste(tile, (gap + column * (cell + gap), gap + row * (cell + gap)))
    return sheet


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
    temporary = path.with_name(f".{path.name}.part")
    image.save(temporary, format="PNG", optimize=True)
    os.replace(temporary, path)


def draw_from(workspace: Workspace, name: str, number: int, seed: int, out: Path) -> None:
    """`tspace sample --recipe`: a grid (out ends in .png) or a folder of single pictures."""
    from pipeline import plan
    from pipeline.mixture import Mixture, draw
    from stages import steps
    from stages.fanout import adopt
    from stages.jobs import device

    recipes = workspace.params.recipes
    if name not in recipes:
        raise UserError(f"--recipe {name}: no such recipe; one of: {', '.join(recipes)}")
    if out.suffix.lower() != ".png" and out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: neither a .png file nor a folder")
    recipe = plan.experts(workspace.params, steps.facts_of(workspace))[name]
    for stage in ("latents", "analyses", "experts"):  # a mixture may name its decoder and means
        adopt(workspace, stage)
    mixture = Mixture(
        steps.milestones_of(workspace, name)[-1]["mixture"],
        lambda e: workspace.store.entry(e["entry"]).file(e["file"]),
        device=device(),
    )
    images, _ = draw(
        mixture,
        recipe.sampling_states,
        range(number),
        seed=seed,
        batch=workspace.params.evaluate.batch,
        **recipe.recipe.sampling.model_dump(mode="json", exclude={"steps"}),
    )
    if out.suffix.lower() == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        save(grid(images, columns=max(1, round(number**0.5))), out)
    else:
        out.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            save(as_image(image), out / f"{name}-{seed}-{i:06d}.png")
    print(f"{number} samples of {name}, seed {seed}: {out}")
