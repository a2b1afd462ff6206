"""Networks of the package diffusers: trained, sampled, given away as ours, and equal to theirs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.data.latents import Latents, write_shard
from pipeline.errors import UserError
from pipeline.networks.build import count_parameters, flops_of, network_of
from pipeline.noise.process import to_x0
from pipeline.params.load import resolve
from pipeline.sampling.exported import load_exported
from pipeline.sampling.samplers import ddim
from pipeline.store.identity import file_digest
from pipeline.training.train import train
from stages import merge
from stages.tools.export import export_recipe
from stages.workspace import Workspace
from tests.specs import expert_spec, network_spec
from tests.workflow import run_stages

UNET = {
    "kind": "diffusers",
    "model": "UNet2DModel",
    "options": {
        "layers_per_block": 1,
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    },
}
DIT = {
    "kind": "diffusers",
    "model": "DiTTransformer2DModel",
    "options": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "patch_size": 2,
        "norm_num_groups": 1,
    },
}


def test_without_the_package_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(UserError, match=r"needs the package.*-c constraints.txt -e '\.\[diffusers"):
        network_of(network_spec(UNET))


def test_a_model_has_no_width_of_ours_and_its_config_lies_in_the_project():
    base = {"seed": 0, "data": {}, "latent": {}, "features": {}, "evaluate": {}, "defaults": {}}
    wide = {"network": UNET, "schedule": {"kind": "log-snr", "states": 2}}
    wide["partition"] = {"kind": "per-state", "channels": [8, 16]}
    with pytest.raises(UserError, match=r"partition\.channels.*a diffusers has no width of ours"):
        resolve(base | {"recipes": {"one": wide}})
    for path in ("/etc/config.json", "../config.json", "config.yaml"):
        with pytest.raises(UserError, match=r"recipes\.one\.network\.config: "):
            resolve(base | {"recipes": {"one": {"network": UNET | {"config": path}}}})


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers")


def trained_here(folder, initial=None):
    """The weights of a U-Net of diffusers that our loop trained, and its spec."""
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (40, 1, 8, 8), np.uint8)
    write_shard(folder / "0.arrow", [(images, np.arange(40) % 3)], (1, 8, 8), [127.5], 73.9)
    started = {} if initial is None else {"initial": {"path": "", "sha256": file_digest(initial)}}
    spec = expert_spec(network=UNET, prediction="eps", images=64, snapshots=[64], **started)
    train(spec, Latents([folder / "0.arrow"]), folder, parent=initial)
    return spec, load_file(folder / "weights-64.safetensors")


def theirs(diffusers, weights=None):
    """The U-Net as diffusers makes it, with our weights under their own names."""
    model = diffusers.UNet2DModel(
        **UNET["options"], in_channels=1, out_channels=1, sample_size=8
    ).eval()
    if weights is not None:
        model.load_state_dict({n.removeprefix("module."): w for n, w in weights.items()})
    return model


@pytest.mark.parametrize("start", ["random", "saved"])
def test_samples_are_those_of_diffusers_own_pipeline(diffusers, tmp_path, monkeypatch, start):
    """The same weights, noise and sampler, to 1e-5; trained here from either start."""
    initial = None
    if start == "saved":
        theirs(diffusers).save_pretrained(tmp_path / "unet")
        initial = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    spec, weights = trained_here(tmp_path, initial)
    ours = network_of(spec)
    begun = load_file(initial) if initial else None
    ours.load_state_dict(weights)
    step, seen = diffusers.DDIMScheduler.step, []

    def watched(*args, **options):
        found = step(*args, **options)
        seen.append(found.prev_sample)  # the pipeline bounds and rounds the last one
        return found

    monkeypatch.setattr(diffusers.DDIMScheduler, "step", watched)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    model = diffusers.DDIMPipeline(theirs(diffusers, weights), scheduler)
    model.set_progress_bar_config(disable=True)
    model(batch_size=4, generator=torch.Generator().manual_seed(3), num_inference_steps=5)
    scheduler.set_timesteps(5)
    kept = scheduler.alphas_cumprod[scheduler.timesteps.flip(0)].double()

    def denoise(x, log_snr):
        return to_x0("eps", ours.eval()(x, torch.tensor([log_snr])), x, log_snr)

    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    found = ddim(eta=0.0)(denoise, noise, torch.logit(kept).tolist())
    assert len(seen) == 5 and found.std() > 0.1
    torch.testing.assert_close(found, seen[-1], rtol=1e-5, atol=1e-5)
    if begun is not None:  # it was trained from there
        moved = (weights["module.conv_in.weight"] - begun["conv_in.weight"]).abs().max()
        assert 0 < moved < 0.2 * begun["conv_in.weight"].abs().max()


def test_a_dit_is_told_classes_and_drops_the_variance(diffusers):
    spec = network_spec(DIT | {"class_conditional": True}, classes=3)
    ours = network_of(spec, seed=1).eval()
    wider = DIT | {"options": DIT["options"] | {"out_channels": 4}, "class_conditional": True}
    both = network_of(network_spec(wider, classes=3), seed=1).eval()
    assert both.module.config.out_channels == 4
    x, level = torch.randn(3, 2, 8, 8), torch.tensor([0.0])
    labels = torch.tensor([0, 2, 3])
    with torch.no_grad():
        answer, unlabelled = ours(x, level, labels), ours(x, level)
        assert both(x, level, labels).shape == x.shape
    assert torch.equal(answer[2], unlabelled[2]) and not torch.equal(answer[0], unlabelled[0])
    # Labels are left out by our loop alone: while it trains, the model itself draws nothing.
    with torch.no_grad():
        assert torch.equal(ours.train()(x, level, labels), answer)
    network_of(network_spec(DIT)).check()  # without classes


@pytest.mark.parametrize("network", [UNET, DIT])
def test_a_model_is_a_network_like_others(diffusers, network):
    spec = network_spec(network)
    first, same, other = (dict(network_of(spec, s).named_parameters()) for s in (1, 1, 2))
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)
    assert count_parameters(network_of(spec, device="meta")) == sum(
        p.numel() for p in first.values()
    )
    assert flops_of(spec) == flops_of(spec, 0.0) > 1e4


def test_a_saved_config_is_read_and_options_come_on_top(diffusers, tmp_path):
    theirs(diffusers).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    named = {"kind": "diffusers", "model": "UNet2DModel", "config": "config.json"}
    spec = network_spec(named | {"options": {"dropout": 0.1}}, channels_in=1)
    spec = spec.model_copy(update={"source": file_digest(config)})
    network = network_of(spec, root=tmp_path)
    assert network.module.config.block_out_channels == [8, 16]
    assert network.module.config.dropout == 0.1
    with pytest.raises(UserError, match=r"network\.config: in_channels is 1, and 2 is what"):
        network_of(spec.model_copy(update={"channels": 2}), root=tmp_path)
    dit = spec.model_copy(
        update={"network": spec.network.model_copy(update={"model": "DiTTransformer2DModel"})}
    )
    with pytest.raises(UserError, match=r"is of a UNet2DModel, and network\.model of a DiT"):
        network_of(dit, root=tmp_path)
    config.write_text("{}")
    with pytest.raises(UserError, match=r"config\.json: changed since this was planned"):
        network_of(spec, root=tmp_path)
    config.unlink()
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        network_of(spec, root=tmp_path)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (UNET, {"num_class_embeds": 7}, r"network\.options: num_class_embeds is 7, and None"),
        (UNET, {"layers_per_block": "x"}, r"network\.model: UNet2DModel: cannot be made of"),
        (UNET, {"norm_num_groups": 3}, r"network\.model: UNet2DModel: cannot be made of"),
        (DIT, {"sample_size": 4}, r"network\.options: sample_size is 4, and 8 is what"),
    ],
)
def test_what_does_not_fit_is_a_user_error(diffusers, network, options, message):
    with pytest.raises(UserError, match=message):
        network_of(network_spec(network | {"options": network["options"] | options}))


STATES = {"kind": "log-snr", "states": 4, "log_snr_max": 6.0, "log_snr_min": -6.0}
PARAMS = {
    "seed": 0,
    "data": {"source": "digits", "limit": 400, "holdout": 16},
    "latent": {},
    "features": {"extractor": "classifier", "images": 600},
    "evaluate": {"samples": 100},
    "defaults": {
        "schedule": STATES,
        "training": {"images": 128, "batch": 16},
        "sampling": {"kind": "ddim", "steps": 4},
    },
    "recipes": {
        "halves": {"network": UNET, "partition": {"kind": "uniform", "intervals": 2}},
        "saved": {
            "network": {"kind": "diffusers", "model": "UNet2DModel", "config": "unet/config.json"},
            "prediction": "eps",
            "training": {"initial": "unet/diffusion_pytorch_model.safetensors"},
            "partition": {"kind": "uniform", "intervals": 2},
            "merge": {"method": "average"},
        },
        "classes": {"network": DIT | {"class_conditional": True}, "sampling": {"guidance": 1.5}},
    },
}


@pytest.mark.slow
def test_they_go_all_the_way_and_out_of_the_checkout(diffusers, tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    theirs(diffusers).save_pretrained(tmp_path / "unet")
    workspace = Workspace(tmp_path)
    run_stages(workspace)
    summary = json.loads((workspace.results / "summary.json").read_text())["recipes"]
    assert set(summary) == set(PARAMS["recipes"])
    assert all(np.isfinite(found["fid"]) for found in summary.values())
    assert len(merge.milestones_of(workspace, "saved")[-1]["mixture"]["experts"]) == 1
    export_recipe(workspace, "saved", tmp_path / "away")
    assert (tmp_path / "away" / "network" / "unet" / "config.json").exists()
    (tmp_path / "unet" / "config.json").unlink()
    images, _ = load_exported(tmp_path / "away").draw(range(4), seed=0)
    assert images.shape == (4, 1, 8, 8)
