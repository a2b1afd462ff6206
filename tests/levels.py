"""Schedules and curricula by kind and options, with the defaults of their blocks."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter

from pipeline.levels import params, schedule

SCHEDULES = TypeAdapter(Annotated[params.Schedule, Field(discriminator="kind")])


def states_of(
    kind: str, states: int, *, spectrum: Any = None, error_curve: Any = None, **options: Any
) -> np.ndarray:
    """The log-SNRs of a schedule, [states]."""
    if kind != "explicit":
        options["states"] = states
    block = SCHEDULES.validate_python({"kind": kind, **options})
    return schedule.build(block, states, spectrum=spectrum, error_curve=error_curve)
