"""What other tools are written to: a class for each, with the same methods.

A run has a name, which is also its key: opened again, it goes on. Steps are images trained.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from pipeline.errors import UserError
from pipeline.params.mistakes import nearest

PROJECT = "tspace"


class Tracker(Protocol):
    """One run, as a tool knows it."""

    def __init__(self, out: Path, name: str): ...

    def params(self, values: Mapping[str, Any]) -> None: ...

    def point(self, series: str, images: int, value: float) -> None: ...

    def picture(self, series: str, images: int, picture: Image.Image) -> None: ...

    def flush(self) -> None:
        """Have all of it on disk."""

    def close(self) -> None: ...


class TensorBoard:
    """Event files in a folder a run: `tensorboard --logdir OUT`."""

    def __init__(self, out: Path, name: str):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / name))

    def params(self, values: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        plain = {
            k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in values.items()
        }
        for summary in hparams(plain, {}):
            self._writer.file_writer.add_summary(summary)

    def point(self, series: str, images: int, value: float) -> None:
        self._writer.add_scalar(series, value, images)

    def picture(self, series: str, images: int, picture: Image.Image) -> None:
        import numpy as np

        self._writer.add_image(series, np.asarray(picture), images, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class DVCLive:
    """A folder a run, as `dvc plots` and the DVC extension read it."""

    def __init__(self, out: Path, name: str):
        from dvclive import Live

        options = {"save_dvc_exp": False, "dvcyaml": None, "report": None}
        self._live = Live(dir=str(out / name), resume=True, monitor_system=False, **options)

    def params(self, values: Mapping[str, Any]) -> None:
        self._live.log_params(dict(values))

    def point(self, series: str, images: int, value: float) -> None:
        self._live.step = images
        self._live.log_metric(series, value)

    def picture(self, series: str, images: int, picture: Image.Image) -> None:
        self._live.step = images
        self._live.log_image(f"{series}/{images}.png", picture)

    def flush(self) -> None:
        self._live.make_summary()

    def close(self) -> None:
        self._live.end()


class MLflow:
    """A file store, or the server that MLFLOW_TRACKING_URI names."""

    def __init__(self, out: Path, name: str):
        # Its file store is no longer developed, which it asks to be told that one knows.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or out.absolute().as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        known = self._client.search_runs([experiment], f"tags.mlflow.runName = '{name}'")
        run = known[0] if known else self._client.create_run(experiment, run_name=name)
        self._id = run.info.run_id

    def params(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            self._client.log_param(self._id, key, value)

    def point(self, series: str, images: int, value: float) -> None:
        self._client.log_metric(self._id, series, value, step=images)

    def picture(self, series: str, images: int, picture: Image.Image) -> None:
        self._client.log_image(self._id, picture, artifact_file=f"{series}/{images:09d}.png")

    def flush(self) -> None: ...

    def close(self) -> None:
        self._client.set_terminated(self._id)


class WandB:
    """Offline runs, which `wandb sync` sends, or what WANDB_MODE says."""

    def __init__(self, out: Path, name: str):
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=PROJECT,
            dir=str(out),
            mode=mode,
            id=name,
            name=name,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
            reinit="create_new",
        )
        # Experts of a recipe are at different images at one time, so its own steps are no axis.
        self._run.define_metric("images")
        self._run.define_metric("*", step_metric="images")

    def params(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def point(self, series: str, images: int, value: float) -> None:
        self._run.log({"images": images, series: value})

    def picture(self, series: str, images: int, picture: Image.Image) -> None:
        import wandb

        self._run.log({"images": images, series: wandb.Image(picture)})

    def flush(self) -> None: ...

    def close(self) -> None:
        self._run.finish()


# What each tool is called, what has to be installed for it, and what writes to it.
TOOLS: dict[str, tuple[str, type[Tracker]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "dvclive": ("dvclive", DVCLive),
    "mlflow": ("mlflow", MLflow),
    "wandb": ("wandb", WandB),
}


def tracker(tool: str) -> type[Tracker]:
    """What writes to a tool. UserError for an unknown one, and for one that is not installed."""
    if tool not in TOOLS:
        raise UserError(f"--to {tool}: no such tool; {nearest(tool, list(TOOLS))}")
    module, found = TOOLS[tool]
    try:
        __import__(module)
    except ImportError as e:
        raise UserError(
            f"--to {tool}: not installed ({e}); pip install -c constraints.txt -e '.[{tool}]'"
        ) from e
    return found


def plain_name(text: str) -> str:
    """A part of a series' or run's name that every tool takes."""
    return re.sub(r"[^\w.-]+", "-", text)
