"""Extractors: what turns uint8 images [n, C, H, W] into features [n, d] for `evaluation.fidelity`.

Scores are only comparable under one extractor. `classifier` is trained on the dataset itself: small
and exact to regenerate, but its scores mean nothing beside published ones. `inception` gives those,
`dinov2` sees more of what people see, `module` is any network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import UserError, one_line
from pipeline.networks.classifier import Classifier
from pipeline.networks.module import class_in
from pipeline.store.files import replacing
from pipeline.store.identity import canonical_json, code_digest, digest, file_digest

# Name and feature layer at torch-fidelity, and number of features.
_TORCH_FIDELITY = {
    "inception": ("inception-v3-compat", "2048", 2048),
    "dinov2": ("dinov2-vit-l-14", "dinov2", 1024),
}

# On CUDA, convolutions round to TF32 by default, and may add in any order.
_EXACT = {"enabled": True, "deterministic": True, "allow_tf32": False}


class Extractor:
    """Computes features with `module`, in batches and without gradients.

    name: what it is; version: of the code that computes; identity: its settings; dimension: number
    of features d; digest: hash of all that determines the features (these and the weights), for
    `frechet.Moments`.
    `compute` takes uint8 images [n, C, H, W] on `device` and returns floats [n, d].
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        version: str,
        dimension: int,
        identity: Any = None,
        compute: Callable[[Tensor], Tensor] | None = None,
        device: str | torch.device = "cpu",
        batch: int = 256,
    ) -> None:
        self.name = name
        self.dimension = dimension
        self.digest = digest([name, version, identity, _weights_digest(module)])
        self._module = module.to(device).eval()
        self._compute = compute or module
        self._device = device
        self._batch = batch

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features, float32 [n, dimension], of uint8 images [n, C, H, W].

        Raises:
            UserError: the network returns another shape, or NaN or infinity.
            ValueError: images of another type or shape.
        """
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"images must be uint8 [n, C, H, W], not {images.dtype} {images.shape}"
            )
        result = np.empty((len(images), self.dimension), dtype=np.float32)
        for start in range(0, len(images), self._batch):
            part = np.ascontiguousarray(images[start : start + self._batch])
            with torch.inference_mode(), torch.backends.cudnn.flags(**_EXACT):
                features = self._compute(torch.from_numpy(part).to(self._device))
            expected = (len(part), self.dimension)
            if not isinstance(features, Tensor) or tuple(features.shape) != expected:
                got = list(features.shape) if isinstance(features, Tensor) else type(features)
                raise UserError(
                    f"extractor {self.name}: returned {got}, not a tensor {list(expected)}"
                )
            if not torch.isfinite(features).all():
                raise UserError(
                    f"extractor {self.name}: NaN or infinity in the features of images {start} to "
                    f"{start + len(part) - 1}; check its weights"
                )
            result[start : start + len(part)] = features.to("cpu", torch.float32).numpy()
        return result


def classifier_extractor(
    module: Classifier, *, device: str | torch.device = "cpu", batch: int = 256
) -> Extractor:
    """Penultimate features of a classifier (`pipeline.networks.classifier`)."""
    channels = module.settings["in_channels"]

    def compute(images: Tensor) -> Tensor:
        if images.shape[1] != channels:
            raise UserError(
                f"extractor classifier: trained on images of {channels} channels, these have "
                f"{images.shape[1]}"
            )
        return module.features(images)

    return Extractor(
        module,
        name="classifier",
        version=code_digest("pipeline.networks.classifier:Classifier"),
        dimension=module.settings["dimension"],
        identity=module.settings,
        compute=compute,
        device=device,
        batch=batch,
    )


def save_extractor(module: Classifier, path: str | Path, report: dict[str, Any]) -> None:
    """Writes a trained classifier with its settings and the report of its training (safetensors).

    The same classifier and report give the same bytes.
    """
    path = Path(path)
    weights = {k: v.to("cpu", copy=True).contiguous() for k, v in module.state_dict().items()}
    about = {
        "kind": "classifier",
        "settings": module.settings,
        "report": report,
        "weights": _weights_digest(module),
    }
    with replacing(path) as temporary:
        # One key only: the order of several is not fixed.
        save_file(weights, temporary, metadata={"tspace": canonical_json(about)})


def load_extractor(
    path: str | Path, *, device: str | torch.device = "cpu", batch: int = 256
) -> Extractor:
    """Reads what `save_extractor` wrote.

    Raises:
        UserError: the file is missing, damaged, or not one of these.
    """
    path = Path(path)
    weights = _load_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["tspace"])
        if about["kind"] != "classifier":
            raise ValueError(f"kind {about['kind']}")
        module = Classifier(**about["settings"])
        module.load_state_dict(weights)
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a classifier of this pipeline ({one_line(error)})") from error
    if _weights_digest(module) != about["weights"]:
        raise UserError(f"{path}: damaged, its checksum does not match; delete it and train again")
    return classifier_extractor(module, device=device, batch=batch)


def module_extractor(
    source: str,
    weights: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    batch: int = 256,
) -> Extractor:
    """Any torch module: `source` is `path/to/file.py:ClassName`, `weights` a safetensors file.

    The class is made without arguments, has an attribute `dimension`, and its `forward` takes uint8
    images [n, C, H, W] and returns features [n, dimension]. Scaling and resizing are its own
    matter. Weights that it draws itself are always the same ones. The file is executed.

    Raises:
        UserError: a file is missing; the class cannot be made, or does not fit its weights.
    """
    file, _, class_name = source.rpartition(":")
    if not file or not class_name.isidentifier():
        raise UserError(f"extractor module {source}: must be path/to/file.py:ClassName")
    made = class_in(Path(file), class_name, "features.module")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = made()
            dimension = module.dimension
    except Exception as error:
        raise UserError(
            f"extractor module {source}: cannot be made: {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(module, nn.Module) or not isinstance(dimension, int) or dimension < 1:
        raise UserError(
            f"extractor module {source}: must be a torch.nn.Module whose `dimension` is the number "
            "of its features"
        )
    if weights is not None:
        try:
            module.load_state_dict(_load_weights(Path(weights)))
        except RuntimeError as error:
            raise UserError(f"{weights}: does not fit {source} ({one_line(error)})") from error
    return Extractor(
        module,
        name=f"module {class_name}",
        version=file_digest(Path(file)),
        dimension=dimension,
        device=device,
        batch=batch,
    )


def torch_fidelity_extractor(
    name: str,
    weights: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    batch: int = 64,
) -> Extractor:
    """`inception` (2048 features, the port of the TensorFlow network that published FIDs use) or
    `dinov2` (ViT-L/14, 1024 features), by torch-fidelity.

    The networks get the uint8 images as they are and do the rest themselves, in float32 and without
    rounding: bilinear resizing as in TensorFlow 1 (corners not aligned, no antialiasing) to 299
    pixels and (x - 128) / 128 for `inception`; the same resizing to 224 pixels and ImageNet's mean
    and deviation for `dinov2`. The FD-DINOv2 of Stein et al. 2023 resizes by bicubic filtering, so
    its published values are not comparable with these. Grey images are repeated in the three
    channels.

    `weights` is a local file in torch-fidelity's format (a state of the network that `torch.load`
    reads, `inception` only); None lets torch-fidelity download its own.

    Raises:
        UserError: torch-fidelity is missing, or cannot load these weights.
    """
    known, layer, dimension = _TORCH_FIDELITY[name]
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"{weights}: no such file; it is the weights of extractor {name}")
    try:
        from torch_fidelity import __version__
        from torch_fidelity.utils import create_feature_extractor
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"extractor {name} needs torch-fidelity ({one_line(error)}): pip install "
            "-c constraints.txt -e '.[fid]'; its weights can be given by a local path, and "
            "extractor classifier needs none of this"
        ) from error
    try:
        module = create_feature_extractor(
            known,
            [layer],
            cuda=False,
            verbose=False,
            feature_extractor_weights_path=None if weights is None else str(weights),
        )
    except NotImplementedError:
        raise UserError(
            f"extractor {name}: torch-fidelity cannot load its weights from a file; leave the "
            "weights out to let it download them, or give the network as extractor module"
        ) from None
    except Exception as error:
        raise UserError(
            f"extractor {name}: torch-fidelity cannot load its weights "
            f"({type(error).__name__}: {one_line(error)}); give a local file with them"
        ) from error

    def compute(images: Tensor) -> Tensor:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[1] != 3:
            raise UserError(f"extractor {name}: needs 1 or 3 channels, not {images.shape[1]}")
        return module(images)[0]

    return Extractor(
        module,
        name=name,
        version=f"torch-fidelity {__version__}",
        dimension=dimension,
        identity=[known, layer],
        compute=compute,
        device=device,
        batch=batch,
    )


def _weights_digest(module: nn.Module) -> str:
    """Hash of names, shapes, types and values of everything in the state of `module`."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        array = value.detach().cpu().contiguous()
        total.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
        total.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _load_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it is the weights of the extractor") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a safetensors file, or damaged ({one_line(error)})"
        ) from error
