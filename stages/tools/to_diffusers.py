"""A model whose network is one of diffusers, as a folder of that package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.levels.schedule import linear
from pipeline.networks.of_diffusers import OfDiffusers
from pipeline.sampling.exported import Exported
from pipeline.store.files import write_json, write_text

STATES = linear(1000)
NEAR = 1e-3  # log-SNRs
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
PIPELINE = '''\
"""The pipeline of this folder: as DDIMPipeline, for data scaled to unit variance, and classes."""

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class ScaledPipeline(DiffusionPipeline):
    """shift (by channel) and scale: pixels from 0 to 255 are z * scale + shift."""

    def __init__(self, unet, scheduler, shift=(127.5,), scale=127.5, classes=0):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(shift=shift, scale=scale, classes=classes)

    @torch.no_grad()
    def __call__(
        self,
        batch_size=1,
        class_labels=None,
        guidance_scale=1.0,
        num_inference_steps=50,
        generator=None,
        latents=None,
        output_type="pil",
        return_dict=True,
    ):
        config = self.unet.config
        shape = (batch_size, config.in_channels, config.sample_size, config.sample_size)
        x = latents
        if x is None:
            x = randn_tensor(shape, generator, self._execution_device, self.unet.dtype)
        labels = none = None
        if self.config.classes:
            none = torch.full((batch_size,), self.config.classes, device=x.device)
            labels = none if class_labels is None else torch.as_tensor(class_labels).to(x.device)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.progress_bar(self.scheduler.timesteps):
            answer = self._answer(x, t, labels)
            if guidance_scale != 1 and labels is not None:
                away = self._answer(x, t, none)
                answer = away + guidance_scale * (answer - away)
            x = self.scheduler.step(answer, t, x, generator=generator).prev_sample
        shift = torch.tensor(self.config.shift, device=x.device).reshape(-1, 1, 1)
        images = ((x * self.config.scale + shift) / 255).clamp(0, 1).cpu()
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).float().numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _answer(self, x, t, labels):
        if labels is None and hasattr(self.unet, "transformer_blocks"):
            labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        t = t.to(x.device).expand(len(x))
        answer = self.unet(x, t, class_labels=labels, return_dict=False)[0]
        return answer[:, : x.shape[1]]
'''
README = """\
# {recipe}, for diffusers

    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(".", custom_pipeline=".", trust_remote_code=True)
    pipeline(batch_size=4, num_inference_steps={steps}{labels}).images[0].save("sample.png")

Any scheduler of diffusers for discrete timesteps fits: `pipeline.scheduler = ...from_config(
pipeline.scheduler.config)`. A pipeline of its own is needed because the network sees data of unit
variance, not pixels from -1 to 1; `pipeline.py` scales it back. The network alone is
`{network}.from_pretrained("unet")`.
"""


def write_diffusers(model: Exported, folder: Path) -> None:
    """Write a model as network, scheduler and pipeline of diffusers.

    UserError unless it is one network of that package that answers for pixels, told the timesteps
    of DDPM's linear schedule.
    """
    told, network = model.mixture.description, model.mixture.network(0)
    _check(told, network)
    from diffusers import DDIMScheduler

    network.module.save_pretrained(folder / "unet")
    DDIMScheduler(
        num_train_timesteps=len(STATES),
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        prediction_type=PREDICTIONS[told["prediction"]],
    ).save_pretrained(folder / "scheduler")
    name = type(network.module).__name__
    write_json(
        folder / "model_index.json",
        {
            "_class_name": ["pipeline", "ScaledPipeline"],
            "unet": ["diffusers", name],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "shift": told["shift"],
            "scale": told["scale"],
            "classes": told["classes"],
        },
    )
    write_text(folder / "pipeline.py", PIPELINE)
    labels = ", class_labels=[0, 1, 2, 3]" if told["classes"] else ""
    steps = len(model.drawing.states)
    text = README.format(recipe=model.recipe, steps=steps, labels=labels, network=name)
    write_text(folder / "README.md", text)


def _check(told: dict, network: torch.nn.Module) -> None:
    where, instead = "--format diffusers", "export without --format"
    if len(told["experts"]) > 1:
        raise UserError(f"{where}: it is {len(told['experts'])} networks; {instead}, or merge them")
    if not isinstance(network, OfDiffusers):
        kind = told["experts"][0]["network"]["kind"]
        raise UserError(f"{where}: network.kind: {kind} is no network of diffusers; {instead}")
    if told["experts"][0]["network"].get("velocity"):
        raise UserError(f"{where}: prediction: flow is answered in a flow's time; {instead}")
    if network.told != "timestep":
        raise UserError(f"{where}: network.told: {network.told}; its schedulers tell timesteps")
    if told["decoder"]:
        raise UserError(
            f"{where}: it makes latents, whose decoder has no pipeline there; {instead}"
        )
    states = np.array([float(value) for value in told["log_snr"]])
    if told["continuous"]:
        fits = states[0] >= STATES[0] - NEAR and states[-1] <= STATES[-1] + NEAR
    else:
        fits = len(states) == len(STATES) and np.abs(states - STATES).max() <= NEAR
    if not fits:
        raise UserError(
            f"{where}: its states are not the 1000 of schedule: linear, which the schedulers of "
            f"diffusers visit; {instead}"
        )
