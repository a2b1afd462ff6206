"""A square matrix as a picture: what noise levels have to do with each other."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

from stages.charts import path, svg, text
from stages.markup import Html, el, join, short

SIDE = 300
LABELS = 7  # at most, on each side

# Blue for -1 over white for 0 to red for 1: as much lighter on both sides.
_STRETCHED = {"preserveaspectratio": "none"}
_NEGATIVE, _ZERO, _POSITIVE = (26, 95, 168), (247, 247, 245), (176, 48, 16)


def heat_map(
    matrix: Sequence[Sequence[float]], log_snr: Sequence[float], bounds: Sequence[float], alt: str
) -> Html:
    """Values -1..1 of each two of some noise levels, cleanest first, with bounds as lines.

    matrix [n, n]; log_snr [n], descending: the levels, which stand equally far apart.
    """
    left, top = 46.0, 20.0
    count = len(log_snr)
    cell = SIDE / count
    parts = [
        el(
            "image",
            href=_picture(np.asarray(matrix, dtype=np.float64)),
            x=left,
            y=top,
            width=SIDE,
            height=SIDE,
            class_="heat",
        ),
        text(0, 12, "log-SNR", "name"),
    ]
    for i in range(0, count, -(-count // LABELS)):
        at, told = (i + 0.5) * cell, short(float(log_snr[i]), 2)
        parts.append(text(left - 6, top + at + 4, told, "tick", "end"))
        parts.append(text(left + at, top + SIDE + 16, told, "tick", "middle"))
    levels, places = np.asarray(log_snr)[::-1], (np.arange(count) + 0.5)[::-1] * cell
    for at in np.interp(list(bounds), levels, places):
        parts.append(path([(left + at, top), (left + at, top + SIDE)], "cut"))
        parts.append(path([(left, top + at), (left + SIDE, top + at)], "cut"))
    return svg(left + SIDE + 8, top + SIDE + 26, alt, *parts)


def scale() -> Html:
    """The colours' meaning, to stand below the pictures."""
    ramp = np.linspace(-1, 1, 65)[None, :]
    image = el("image", href=_picture(ramp), x=28.0, y=0.0, width=160, height=12, **_STRETCHED)
    parts = [text(0, 11, "−1", "tick"), image, text(196, 11, "1", "tick")]
    return svg(210, 14, "Colours from −1 over 0 to 1", join(parts))


def _picture(values: np.ndarray) -> str:
    from PIL import Image

    weight = np.abs(values).clip(0, 1)[..., None]
    end = np.where(values[..., None] < 0, _NEGATIVE, _POSITIVE)
    colours = np.round(weight * end + (1 - weight) * np.array(_ZERO)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(colours).save(out, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
