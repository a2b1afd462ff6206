"""Networks of the package diffusers, by the names of their classes there.

A model trained here has the parameters of its class under their own names, so weights go both ways.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError, one_line
from pipeline.networks.module import Own, own

if TYPE_CHECKING:
    from pipeline.specs import NetworkSpec


class OfDiffusers(Own):
    """A model of diffusers behind the interface of the networks here."""

    def ask(self, x: Tensor, level: Tensor, labels: Tensor | None) -> Any:
        if labels is None and hasattr(self.module, "transformer_blocks"):  # it needs some
            labels = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        answer = self.module(x, level, class_labels=labels, return_dict=False)[0]
        # Of channels for the noise's mean and variance, the mean's come first (Nichol & Dhariwal
        # 2021); it alone is trained and used here.
        return answer[:, : x.shape[1]] if answer.shape[1] == 2 * x.shape[1] else answer


def of_diffusers(spec: NetworkSpec, seed: int, device: torch.device | str, root: Path) -> Own:
    """The network of a block `network` of kind `diffusers`; its config is below `root`.

    UserError without the package, and for a config that cannot be read, is not the one of the spec,
    or does not fit the data.
    """
    try:
        import diffusers
    except ModuleNotFoundError as e:
        raise UserError(
            "network.kind: diffusers needs the package of this name: "
            "pip install -c constraints.txt -e '.[diffusers]'"
        ) from e
    settings = spec.network
    given = (_config(root / settings.config, spec) if settings.config else {}) | settings.options
    wanted = _wanted(spec, given)

    def build() -> nn.Module:
        model = getattr(diffusers, settings.model).from_config(given | wanted)
        for part in model.modules():
            if hasattr(part, "dropout_prob"):
                part.dropout_prob = 0.0  # of labels: network.label_dropout leaves them out
        return model

    return own(OfDiffusers, build, spec, seed, device, f"network.model: {settings.model}")


def _wanted(spec: NetworkSpec, given: dict[str, Any]) -> dict[str, Any]:
    """What the data says of a model's config. UserError for a config that says otherwise."""
    wanted: dict[str, Any] = {"in_channels": spec.channels, "sample_size": spec.resolution}
    outputs = given.get("out_channels", spec.channels)
    if outputs not in (spec.channels, 2 * spec.channels):
        outputs = spec.channels
    wanted["out_channels"] = outputs
    if spec.network.model == "UNet2DModel":
        # One more for "no class".
        wanted["num_class_embeds"] = spec.classes + 1 if spec.classes else None
    else:
        wanted["num_embeds_ada_norm"] = spec.classes or 1  # it adds that one itself
    for key, value in wanted.items():
        if given.get(key, value) != value:
            raise UserError(
                f"network.{'config' if spec.network.config else 'options'}: {key} is "
                f"{given[key]}, and {value} is what the data and class_conditional ask for"
            )
    return wanted


def _config(path: Path, spec: NetworkSpec) -> dict[str, Any]:
    name, wanted = f"network.config: {spec.network.config}", spec.network.model
    try:
        text = path.read_bytes()
        if hashlib.sha256(text).hexdigest() != spec.source:
            raise UserError(f"{name}: changed since this was planned; run `dvc repro` again")
        found = json.loads(text)
        model = found.get("_class_name", wanted)
    except (OSError, ValueError, AttributeError) as e:
        raise UserError(f"{name}: cannot be read ({one_line(e)})") from e
    if model != wanted:
        raise UserError(f"{name}: is of a {model}, and network.model of a {wanted}")
    return {key: value for key, value in found.items() if not key.startswith("_")}
