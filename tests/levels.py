"""Schedules and curricula by kind and options, with the defaults of their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from unittest import mock

import numpy as np
from pydantic import Field, TypeAdapter

from pipeline.levels import curriculum, params, schedule
from pipeline.specs import InFlowTime

SCHEDULES = TypeAdapter(Annotated[params.Schedule, Field(discriminator="kind")])
CURRICULA = TypeAdapter(Annotated[params.Curriculum, Field(discriminator="kind")])


def states_of(
    kind: str, states: int, *, spectrum: Any = None, error_curve: Any = None, **options: Any
) -> np.ndarray:
    """The log-SNRs of a schedule, [states]."""
    if kind != "explicit":
        options["states"] = states
    block = SCHEDULES.validate_python({"kind": kind, **options})
    return schedule.build(block, states, spectrum=spectrum, error_curve=error_curve)


def curriculum_of(
    kind: str,
    log_snrs: np.ndarray,
    continuous: bool = False,
    *,
    cells: int = curriculum.CELLS,
    bounds: Sequence[float] = (),
    flow: float | None = None,
    **options: Any,
) -> curriculum.Curriculum:
    """A curriculum over states, or over a range of `cells` cells.

    flow: the time shift of the flow whose time they are even in; None: in log-SNR.
    """
    block = CURRICULA.validate_python({"kind": kind, **options})
    if flow is not None:
        block = InFlowTime(shift=flow, form=block, bounds=list(bounds))
    with mock.patch.object(curriculum, "CELLS", cells):
        return curriculum.build(block, log_snrs, continuous, bounds)
