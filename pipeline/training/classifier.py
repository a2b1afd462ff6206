"""Training of the classifier whose features scores are computed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.errors import UserError
from pipeline.evaluation.chance import HELD_OUT, better_than_chance, held_out, images_needed
from pipeline.networks.classifier import Classifier
from pipeline.training.run import Progress, Run

_EVALUATION_BATCH = 500


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray | None,
    folder: Path,
    *,
    classes: int | None = None,
    images_budget: int,
    batch: int,
    learning_rate: float,
    seed: int,
    holdout: float = HELD_OUT,
    channels: int = 32,
    dimension: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[Progress], object] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Classifier, dict[str, Any]]:
    """A classifier of `images`, uint8 [N, C, H, W], trained on `images_budget` of them.

    From its checkpoint in `folder`/state if there is one, which is all that it leaves there.

    `labels` are integers [N] below `classes` (default: the largest + 1). Without any, or if all are
    the same, it learns to tell by which of 4 right angles an image was turned (RotNet, Gidaris et
    al. 2018), which needs square images.

    AdamW; the learning rate rises over the first tenth and falls linearly to 0. The share `holdout`
    of the images, at most `MOST_HELD_OUT`, is kept out of training and measures the accuracy.
    `images` may be mapped into memory: a batch is read when it is needed. All draws come from
    `seed`, on the CPU: the result is the same for the same number of threads.

    Returns the classifier on the CPU and a report: task (labels or rotations), classes, images
    (seen), holdout (images; each in all 4 directions for rotations), accuracy (held out), chance
    (the accuracy of always answering the most frequent class), learnt (whether it is better than
    that, None where too few images were held out to tell), needed (images held out that always
    tell, None if there are not so many), loss (of the last tenth).

    Raises:
        Interrupted: `stop()` is true; the checkpoint is written.
        UserError: images that are not square without labels; too few images;
            training diverged.
        ValueError: wrong types or shapes; labels outside of the classes.
    """
    _check_images(images)
    rotate = labels is None or len(np.unique(labels)) < 2
    if rotate:
        if images.shape[2] != images.shape[3]:
            raise UserError(
                "classifier: without labels it learns rotations, which needs square images, not "
                f"{images.shape[2]}x{images.shape[3]}; crop them, or add labels"
            )
        classes = 4
    else:
        classes = _check_labels(labels, len(images), classes)
    held = held_out(len(images), holdout)
    if not 0 < held <= len(images) - batch:
        raise UserError(
            f"classifier: {len(images)} images, {held} of them held out, are too few for batches "
            f"of {batch}; lower the batch, or use another extractor"
        )
    random = np.random.Generator(np.random.Philox(seed))
    order = random.permutation(len(images))
    held_rows, rows = np.sort(order[:held]), np.sort(order[held:])

    model = Classifier(
        in_channels=images.shape[1],
        size=max(images.shape[2:]),
        classes=classes,
        channels=channels,
        dimension=dimension,
        seed=seed,
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02, fused=True)
    run = Run(folder, {"network": model, "optimizer": optimizer}, torch.device(device), log)
    run.resume()
    steps = max(1, images_budget // batch)
    done = run.images // batch
    # Drawn again from the start: that takes no time, and the generator has no state to keep.
    drawn = islice(_batches(random, rows, batch, rotate), done, None)
    with run:
        for step in range(done, steps):
            chosen, turns = next(drawn)
            if turns is None:
                x, y = images[chosen], labels[chosen]
            else:
                x, y = _rotated(images[chosen], turns)
            x, y = torch.from_numpy(x).to(device), torch.from_numpy(y.astype(np.int64)).to(device)
            rate = learning_rate * min(1.0, 10 * (step + 1) / steps) * (1 - step / steps)
            optimizer.param_groups[0]["lr"] = rate
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.add_loss(loss, batch)
            due = 10 * step // steps != 10 * (step + 1) // steps
            if due and not np.isfinite(run.close_point()):
                raise UserError(
                    f"classifier: training diverged at learning_rate={learning_rate}; lower it"
                )
            run.tell(progress, steps * batch)
            # Stopped in the measurements below, it repeats no training.
            if stop():
                run.interrupt()
            if run.due() or step + 1 == steps:
                run.checkpoint()
    model.eval()
    held_images = images[held_rows]
    if rotate:
        held_labels = np.repeat(np.arange(4), held)
        held_images, _ = _rotated(np.concatenate([held_images] * 4), held_labels)
    else:
        held_labels = labels[held_rows]
    right = _right(model, held_images, held_labels, device)
    chance = 0.25 if rotate else float(np.bincount(labels).max() / len(labels))
    report = {
        "task": "rotations" if rotate else "labels",
        "classes": classes,
        "images": steps * batch,
        "holdout": held,
        "accuracy": right / len(held_labels),
        "chance": chance,
        "learnt": better_than_chance(right, len(held_labels), chance),
        "needed": images_needed(chance, 4 if rotate else 1),
        "loss": run.curve[-1][1],
    }
    return model.to("cpu"), report


def _batches(
    random: np.random.Generator, rows: np.ndarray, batch: int, rotate: bool
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Rows and right angles (or None) of each batch, for ever."""
    queue = np.empty(0, dtype=int)
    while True:
        if len(queue) < batch:
            queue = random.permutation(rows)
        chosen, queue = queue[:batch], queue[batch:]
        yield chosen, random.integers(4, size=batch) if rotate else None


@torch.inference_mode()
def _right(model: Classifier, images: np.ndarray, labels: np.ndarray, device: Any) -> int:
    right = 0
    for start in range(0, len(images), _EVALUATION_BATCH):
        part = slice(start, start + _EVALUATION_BATCH)
        guess = model(torch.from_numpy(images[part]).to(device)).argmax(dim=1).cpu().numpy()
        right += int(np.count_nonzero(guess == labels[part]))
    return right


def _rotated(images: np.ndarray, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    turned = np.empty_like(images)
    for turn in range(4):
        which = turns == turn
        turned[which] = np.rot90(images[which], turn, axes=(2, 3))
    return turned, turns


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 [N, C, H, W], not {images.dtype} {images.shape}")


def _check_labels(labels: np.ndarray, count: int, classes: int | None) -> int:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers [{count}], not {labels.dtype} {labels.shape}")
    classes = int(labels.max()) + 1 if classes is None else classes
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}, of {classes} classes")
    return classes
