"""Experts over clusters of the data, and the router that mixes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from pipeline import plan
from pipeline.data.latents import Latents, write_shard
from pipeline.errors import UserError
from pipeline.levels.clusters import clusters, nearest
from pipeline.levels.optimal_denoiser import optimal_denoiser
from pipeline.networks.build import flops_of, network_of
from pipeline.networks.params import RouterNetwork
from pipeline.noise import philox
from pipeline.params.load import resolve
from pipeline.sampling.clusters import identity
from pipeline.sampling.exported import load_exported
from pipeline.sampling.routing import mixed
from pipeline.specs import RouterSpec
from pipeline.training.draws import Draws
from pipeline.training.router import train_router
from pipeline.training.run import Interrupted
from pipeline.training.train import train
from stages import merge, sample
from stages.facts import facts_of
from stages.film import Films
from stages.inputs import mixture_of
from stages.tools import plan as planning
from stages.tools.card import card
from stages.tools.export import export_recipe
from stages.workspace import Workspace
from tests.mixtures import GaussianMixture
from tests.specs import expert_spec
from tests.test_standalone import alone, cells
from tests.workflow import run_stages


def latents_of(tmp_path, rows: np.ndarray, labels=None) -> Latents:
    """Latents of rows, float32 [N, C, H, W], as they are."""
    path = tmp_path / "latents.arrow"
    shape = rows.shape[1:]
    write_shard(path, [(rows.astype(np.float32), labels)], shape, [0.0] * shape[0], 1.0)
    return Latents([path])


def blobs(count: int, seed: int, d: int = 4) -> np.ndarray:
    """Rows [count, 1, 2, 2] around three points, with 6 : 3 : 1 of them."""
    random = np.random.default_rng(seed)
    centres = np.zeros((3, d))
    centres[0, 0], centres[1, 1], centres[2, 2] = 3.0, 3.0, -3.0
    which = random.choice(3, count, p=[0.6, 0.3, 0.1])
    return (centres[which] + 0.4 * random.normal(size=(count, d))).reshape(-1, 1, 2, 2), which


# --- clusters


def test_clusters_are_found_the_largest_first(tmp_path):
    rows, which = blobs(600, 0)
    found = clusters(latents_of(tmp_path, rows), 3, 400, key=1)
    assert np.array_equal(found, which)  # they lie far apart
    assert np.array_equal(found, clusters(latents_of(tmp_path, rows), 3, 400, key=1))


def test_no_row_is_nearer_to_another_centre(tmp_path):
    rows = np.random.default_rng(0).normal(size=(500, 1, 2, 2))
    found = clusters(latents_of(tmp_path, rows), 5, 500, key=1)
    flat = rows.reshape(500, -1).astype(np.float32)
    centres = np.stack([flat[found == c].mean(0) for c in range(5)])
    assert np.array_equal(nearest(flat, centres)[0], found)
    assert (np.diff(np.bincount(found)) <= 0).all()


def test_fewer_clusters_than_wanted_are_refused(tmp_path):
    rows = np.repeat(np.eye(4), 50, axis=0).reshape(-1, 1, 2, 2)
    assert len(np.unique(clusters(latents_of(tmp_path, rows), 4, 200, key=0))) == 4
    with pytest.raises(UserError, match=r"partition.clusters: the data fall into 4 clusters"):
        clusters(latents_of(tmp_path, rows), 5, 200, key=0)


# --- the law


def exact_parts(rows: np.ndarray, which: np.ndarray, x: np.ndarray, log_snr: float):
    """p(c | x) of a dataset's clusters [n, k], and each one's exact denoiser at x [k, n, d]."""
    alpha, sigma2 = 1 / np.sqrt(1 + np.exp(-log_snr)), 1 / (1 + np.exp(log_snr))
    far = ((x[:, None].astype(np.float64) - alpha * rows) ** 2).sum(-1) / (2 * sigma2)
    weight = np.exp(far.min(1, keepdims=True) - far)
    k = which.max() + 1
    chances = np.stack([weight[:, which == c].sum(1) for c in range(k)], 1)
    parts = []
    for c in range(k):
        own = rows[which == c]
        parts.append(optimal_denoiser(lambda i, own=own: own[i], len(own), x, log_snr))
    return chances / chances.sum(1, keepdims=True), np.stack(parts)


@pytest.mark.parametrize("log_snr", [6.0, 1.0, -2.0, -6.0])
def test_the_clusters_denoisers_by_their_posterior_are_that_of_the_whole(log_snr):
    rows, which = blobs(300, 1)
    rows = rows.reshape(300, -1).astype(np.float32)
    eps = np.random.default_rng(2).normal(size=rows.shape)
    alpha, sigma = (1 / np.sqrt(1 + np.exp(s * log_snr)) for s in (-1, 1))
    x = (alpha * rows + sigma * eps).astype(np.float32)
    whole = optimal_denoiser(lambda i: rows[i], len(rows), x, log_snr)
    chances, parts = exact_parts(rows, which, x, log_snr)

    def answer(c, kept):
        return torch.from_numpy(parts[c])[kept]

    # Of all experts the law; of fewer, what the rest would have said is lost, and least for most.
    lost = [
        float((mixed(torch.from_numpy(chances), top, answer).numpy() - whole).__pow__(2).mean())
        for top in (1, 2, 3)
    ]
    assert lost[2] < 1e-11 and lost[2] <= lost[1] <= lost[0]
    least = ((parts[chances.argmax(1), np.arange(len(x))] - whole) ** 2).mean()
    assert lost[0] == pytest.approx(least, rel=1e-9)
    assert (lost[0] > 5e-3) == (log_snr < 0)  # in little noise, the cluster is known


def test_a_model_is_asked_for_the_samples_that_it_counts_for_alone():
    chances = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    asked = {}

    def answer(model, rows):
        asked[model] = rows.tolist()
        return torch.full((len(rows), 1, 2, 2), float(model + 1))

    found = mixed(chances, 1, answer)
    assert asked[0] == [0, 3] and found[:, 0, 0, 0].tolist()[:2] == [1.0, 3.0]
    assert set(asked) <= {0, 1, 2} and sum(map(len, asked.values())) == 4
    mean = mixed(chances, 2, answer)[:, 0, 0, 0]
    assert mean[:2].tolist() == pytest.approx([(0.7 + 0.4) / 0.9, (0.6 + 1.8) / 0.9])
    assert sum(map(len, asked.values())) == 8


# --- the router


def router_spec(**changes) -> RouterSpec:
    base = {
        "network": RouterNetwork(channels=16, clusters=2),
        "conditioning": "state",
        "channels": 1,
        "resolution": 2,
        "classes": 0,
        "log_snr": [4.0, 2.0, 0.0, -2.0, -4.0],
        "continuous": False,
        "curriculum": {"form": {"kind": "uniform"}},
        "pairing": {"method": "independent"},
        "noise_key": 1,
        "stream_key": 2,
        "start_key": 3,
        "images": 60_000,
        "batch": 128,
        "learning_rate": 2e-3,
        "threads": 1,
        "latents": [],
        "clusters": "",
        "code": "",
    }
    return RouterSpec(**base | changes)


def trained(spec: RouterSpec, folder):
    from safetensors.torch import load_file

    network = network_of(spec).eval()
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    return network


def test_a_router_learns_the_posterior_of_two_gaussians(tmp_path):
    """p(c | x) of two Gaussian blobs is known; 3 to 1 of the rows, and they overlap in noise."""
    means = [[1.0, 0.5, 0.0, 0.0], [-1.5, 0.0, 0.5, 0.0]]
    covs = [(0.09 * np.eye(4)).tolist()] * 2
    count, shares = 20_000, [0.75, 0.25]
    random = np.random.default_rng(0)
    which = (np.arange(count) % 4 == 3).astype(np.int64)
    rows = np.asarray(means)[which] + 0.3 * random.normal(size=(count, 4))
    latents = latents_of(tmp_path, rows.reshape(-1, 1, 2, 2))
    spec = router_spec()
    train_router(spec, latents, which, tmp_path)
    router = trained(spec, tmp_path)

    parts = [GaussianMixture([1.0], [mean], [cov]) for mean, cov in zip(means, covs, strict=True)]
    fresh = np.asarray(means)[which[:2000]] + 0.3 * random.normal(size=(2000, 4))
    for log_snr in spec.log_snr:
        alpha, sigma = (1 / np.sqrt(1 + np.exp(s * log_snr)) for s in (-1, 1))
        x = torch.from_numpy(alpha * fresh + sigma * random.normal(size=fresh.shape))
        joint = [
            np.log(w) + part.log_pdf(x, log_snr) for w, part in zip(shares, parts, strict=True)
        ]
        exact = torch.softmax(torch.stack(joint, 1), 1)[:, 0]
        with torch.no_grad():
            told = router(x.float().reshape(-1, 1, 2, 2), torch.tensor([log_snr])).softmax(1)[:, 0]
        assert float((told - exact).abs().mean()) < 0.03, log_snr
        # Calibrated: where it says p, so it is.
        for low, high in ((0.0, 0.5), (0.5, 0.8), (0.8, 1.01)):
            some = (told >= low) & (told < high)
            if some.sum() > 100:
                assert float(told[some].mean() - exact[some].mean()) == pytest.approx(0, abs=0.05)


def test_a_router_that_was_killed_ends_with_the_same_bytes(tmp_path):
    rows, which = blobs(200, 3)
    latents = latents_of(tmp_path, rows)
    spec = router_spec(images=1_100, network=RouterNetwork(channels=8, clusters=3))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    train_router(spec, latents, which, whole)
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        train_router(spec, latents, which, cut, stop=lambda: next(steps) == 3)
    assert not (cut / "weights.safetensors").exists()
    train_router(spec, latents, which, cut)
    for name in ("weights.safetensors", "curve.json", "record.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name


@pytest.mark.parametrize("side", [1, 2, 7, 8, 12])
def test_a_router_fits_any_size_and_counts_its_flops(side):
    spec = router_spec(resolution=side, classes=3)
    network = network_of(spec)
    x = torch.zeros(2, 1, side, side)
    assert network(x, torch.zeros(2), torch.tensor([0, 3])).shape == (2, 2)
    with FlopCounterMode(display=False) as counter:
        network(x[:1], torch.zeros(1), torch.tensor([0]))
    assert flops_of(spec) == counter.get_total_flops()


# --- an expert's own rows


def test_an_expert_sees_each_of_its_rows_once_a_pass_and_no_other(tmp_path):
    rows, which = blobs(90, 4)
    latents, own = latents_of(tmp_path, rows), np.flatnonzero(which == 1)
    draws = Draws(expert_spec(resolution=2, cluster=1), latents, own=own)
    seen = [draws.places(start, start + 8) for start in range(0, 3 * len(own), 8)]
    slots, found = (np.concatenate(parts)[: 3 * len(own)] for parts in zip(*seen, strict=True))
    for slot in range(3):
        mine = found[slots == slot]
        assert np.array_equal(np.sort(mine), own)
    # The same as of all rows where these are its own.
    every = np.arange(len(latents))
    whole = Draws(expert_spec(resolution=2), latents)
    same = Draws(expert_spec(resolution=2), latents, own=every)
    for a, b in zip(whole.places(40, 200), same.places(40, 200), strict=True):
        assert np.array_equal(a, b)


def test_an_expert_of_a_cluster_that_was_killed_ends_with_the_same_bytes(tmp_path):
    rows, which = blobs(90, 4)
    latents, own = latents_of(tmp_path, rows), np.flatnonzero(which == 1)
    network = {"kind": "unet", "channels": 8, "multipliers": [1, 1], "blocks": 1}
    spec = expert_spec(resolution=2, cluster=1, network=network)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    train(spec, latents, whole, own=own)
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        train(spec, latents, cut, own=own, stop=lambda: next(steps) == 9)
    train(spec, latents, cut, own=own)
    for name in ("weights-100.safetensors", "weights-212.safetensors", "curve.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"optimizer": {"kind": "muon"}},
        {"auxiliary": {"kind": "dispersive"}},
        {"auxiliary": {"kind": "repa"}, "shards": 2},
    ],
)
def test_what_is_in_other_rows_means_nothing_to_an_expert(tmp_path, training):
    rows, which = blobs(90, 4)
    own, found = np.flatnonzero(which == 1), []
    network = {"kind": "unet", "channels": 8, "multipliers": [1, 1], "blocks": 1}
    spec = expert_spec(resolution=2, cluster=1, network=network, training=training)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        latents = latents_of(tmp_path / name, rows)
        features = np.arange(len(rows), dtype=np.float32)[:, None] % 7 + [[0, 1, 2]]
        train(spec, latents, tmp_path / name, own=own, features=features.astype(np.float32))
        found.append((tmp_path / name / "weights-212.safetensors").read_bytes())
        rows = np.where((which == 1)[:, None, None, None], rows, 9 - rows)
    assert found[0] == found[1]


# --- plans

FACTS = plan.DatasetFacts(
    "0" * 64, 1000, 16, 1, 10, (127.5,), (73.9,), class_counts=(100,) * 10, held_out=50
)
RECIPE = {
    "schedule": {"kind": "log-snr", "states": 8},
    "partition": {"kind": "data", "clusters": 3},
    "training": {"images": 1000, "batch": 16},
}


def planned(found: list[int] | None = None, **recipes):
    import dataclasses

    params = resolve({"data": {"holdout": 50}, "recipes": recipes})
    jobs = [job for job in plan.analyses(params, FACTS) if job.kind == "clusters"]
    measured = {job.name: {"rows": found or [500, 300, 200]} for job in jobs}
    return plan.experts(params, dataclasses.replace(FACTS, analyses=measured))


def test_clusters_share_the_images_by_their_rows():
    found = planned(a=RECIPE)["a"]
    assert [e.images for e in found.experts] == [500, 300, 200]
    assert [e.job.spec.cluster for e in found.experts] == [0, 1, 2]
    assert len({e.job.spec.stream_key for e in found.experts}) == 3
    by_time = RECIPE | {"partition": {"kind": "data", "clusters": 3, "intervals": 2}}
    found = planned(a=by_time)["a"]
    assert [(e.cluster, e.first, e.last) for e in found.experts] == [
        (c, *states) for c in range(3) for states in ((0, 3), (4, 7))
    ]
    assert [e.images for e in found.experts] == [250, 250, 150, 150, 100, 100]
    hard = by_time | {
        "training": RECIPE["training"] | {"budget": "curriculum"},
        "curriculum": {"kind": "static"},
    }
    images = np.reshape([e.images for e in planned(a=hard)["a"].experts], (3, 2))
    assert images.sum(1).tolist() == [500, 300, 200] and images[0, 0] > images[0, 1]


def test_an_expert_depends_on_its_cluster_and_a_router_on_no_expert():
    one, other = planned(
        a=RECIPE,
        b=RECIPE | {"network": {"channels": 16}, "sampling": {"top": 2}, "training": {"batch": 32}},
    ).values()
    assert one.router.job.name == other.router.job.name
    assert one.router.job.spec.clusters == one.experts[0].job.spec.clusters
    changed = planned(a=RECIPE | {"partition": RECIPE["partition"] | {"router": {"images": 500}}})
    assert [e.job.name for e in changed["a"].experts] == [e.job.name for e in one.experts]
    assert changed["a"].router.job.name != one.router.job.name
    assert not {e.job.name for e in one.experts} & set(one.router.job.needs)


def test_a_pairing_covers_the_passes_over_a_clusters_rows():
    paired = RECIPE | {
        "pairing": {"method": "assignment"},
        "partition": RECIPE["partition"] | {"router": {"images": 2500}},
        "training": {"images": 1900, "batch": 16},
    }
    found = planned(a=paired)["a"]
    assert [job.spec.slots for job in found.experts[0].pairings] == [[0, 1], [1, 2]]
    assert found.router.pairings[-1].spec.slots == [2, 4]
    assert {job.spec.slots[1] for job in found.pairings} == {1, 2, 4}


def test_a_cluster_smaller_than_a_batch_is_refused():
    with pytest.raises(UserError, match=r"recipes.a: partition.clusters: the smallest of 3 .* 15"):
        planned([600, 385, 15], a=RECIPE)


def test_plans_wait_for_the_clusters():
    params = resolve({"recipes": {"a": RECIPE}})
    with pytest.raises(plan.NotMeasured, match="3 clusters: not measured yet"):
        plan.experts(params, FACTS)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"partition": {"kind": "data", "clusters": 1}}, "partition.clusters"),
        ({"partition": {"kind": "data"}}, "partition.clusters: missing"),
        ({"sampling": {"top": 4}}, r"sampling.top: more experts \(4\) than clusters \(3\)"),
        ({"partition": {"kind": "single"}, "sampling": {"top": 2}}, "sampling.top: of the experts"),
        (
            {"partition": {"kind": "data", "clusters": 2, "intervals": 9}},
            r"partition.intervals: more intervals \(9\) than states \(8\)",
        ),
        (
            {
                "partition": {"kind": "data", "clusters": 2, "intervals": 2},
                "schedule": {"kind": "edm"},
                "sampling": {"steps": 4},
            },
            "partition.intervals: a continuous schedule",
        ),
        (
            {"network": {"kind": "multi-decoder", "decoder_channels": [8, 8, 8]}},
            "partition.kind: data gives a multi-decoder network no intervals",
        ),
        (
            {"training": {"initial": "w.safetensors"}, "merge": {"method": "task-vector"}},
            "merge.method: task-vector makes one network",
        ),
        (
            {"training": {"milestones": [10, 20, 30], "stop": {}}},
            "training.stop: the held-out images are of all clusters",
        ),
        (
            {"pairing": {"method": "semidiscrete"}},
            "pairing.method: semidiscrete lets each noise choose among the rows of all clusters",
        ),
        ({"curriculum": {"kind": "per-interval"}}, "per-interval needs one, as .* is data"),
        ({"partition": {"kind": "data", "clusters": 2, "channels": [8, 8]}}, "partition.channels"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(change, wrong):
    with pytest.raises(UserError, match=wrong):
        resolve({"data": {"holdout": 50}, "recipes": {"a": RECIPE | change}})


def test_a_mixture_of_clusters_is_no_parent():
    recipes = {"a": RECIPE, "b": {"training": {"parent": "a"}}}
    with pytest.raises(UserError, match="'a' has several experts"):
        resolve({"recipes": recipes})


# --- from images to the report

PARAMS = """\
seed: 0
data: {source: digits, limit: 300, holdout: 20}
latent: {encoder: pixels}
features: {extractor: classifier, images: 400, dimension: 8, channels: 8}
evaluate:
  samples: 16
  batch: 6
  consistency: {recipes: [plain, data], samples: 16, states: 3}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1, 1], blocks: 1}
  schedule: {kind: log-snr, states: 6}
  training: {images: 320, batch: 16, milestones: [160]}
recipes:
  plain: {}
  data:
    partition: {kind: data, clusters: 3, router: {images: 640, channels: 8}}
    pairing: {method: assignment, block: 64}
  both:
    partition: {kind: data, clusters: 2, intervals: 2, router: {images: 640, channels: 8}}
    schedule: {kind: cosine, states: 5, zero_terminal: true}
    sampling: {top: 2}
  led:
    network: {class_conditional: true}
    partition: {kind: data, clusters: 2, router: {images: 640, channels: 8}}
    sampling: {guidance: 2.0, guidance_interval: [-4, 4], top: 2}
  away:
    sampling: {guidance: 1.5, guide: {recipe: data, milestone: 160}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("clusters")
    (root / "params.yaml").write_text(PARAMS)
    workspace = Workspace(root)
    run_stages(workspace)
    return workspace


def described(workspace, name):
    return merge.milestones_of(workspace, name)[-1]["mixture"]


def test_every_recipe_is_scored_and_costs_its_router(finished):
    summary = json.loads((finished.results / "summary.json").read_text())["recipes"]
    recipes = plan.experts(finished.params, facts_of(finished))
    assert [summary[name]["experts"] for name in recipes] == [1, 3, 4, 2, 1]
    assert {found["samples"] for found in summary.values()} == {16}
    for name in ("data", "both", "led"):
        recipe, found = recipes[name], summary[name]
        entries = [finished.store.entry(job.name) for job in recipe.trainings]
        records = [entry.load_json("record.json") for entry in entries]
        assert found["train_flops"] == pytest.approx(sum(r["flops"] for r in records))
        assert found["images_seen"] == 320  # of the experts
        metrics = json.loads((finished.results / f"recipes/{name}/metrics.json").read_text())
        assert np.isfinite(metrics["held_out"]["error"]).all()
        assert found["parameters"] == sum(r["parameters"] for r in records)
        top = recipe.recipe.sampling.top
        active = top * records[0]["parameters"] + records[-1]["parameters"]
        assert found["parameters_active"] == active
    page = (finished.results / "report.html").read_text()
    assert "Clusters of the data" in page


def test_experts_answer_for_the_samples_that_the_router_gives_them(finished):
    model = mixture_of(described(finished, "data"), finished.store, finished)
    x = philox.normal(1, 0, torch.arange(40), (1, 8, 8))
    for log_snr in (5.4, -1.8, -9.0):
        level = torch.tensor([log_snr])
        with torch.no_grad():
            chosen = model.router(x, level).argmax(1)
        answers = torch.stack([part.denoise(x, log_snr) for part in model.clusters])
        wanted = answers[chosen, torch.arange(len(x))]
        assert torch.allclose(model.denoise(x, log_snr), wanted, atol=1e-6)
    assert len(chosen.unique()) > 1 or len(model.clusters) == 3
    both = mixture_of(described(finished, "both"), finished.store, finished)
    with torch.no_grad():
        chances = both.router(x, torch.tensor([-1.0])).softmax(1)
    answers = torch.stack([part.denoise(x, -1.0) for part in both.clusters], 1)
    wanted = (chances.reshape(-1, 2, 1, 1, 1) * answers).sum(1)
    assert torch.allclose(both.denoise(x, -1.0), wanted, atol=1e-6)
    assert both.denoise(x, -np.inf).std(0).max() == 0  # the mean of the data


def test_guidance_leads_a_mixture_of_clusters(finished):
    recipes, facts = plan.experts(finished.params, facts_of(finished)), facts_of(finished)
    x = philox.normal(1, 0, torch.arange(6), (1, 8, 8))
    labels = torch.arange(6)
    jobs = sample.sample_jobs(finished, finished.params, facts, recipes)
    led = jobs["led", 320][0].spec
    guided = mixture_of(led.mixture, finished.store, finished, led.led)
    plain = mixture_of(led.mixture, finished.store, finished)
    own, none = plain.denoise(x, 1.0, labels), plain.denoise(x, 1.0, torch.full((6,), 10))
    found = guided.denoiser(labels, 2.0)(x, 1.0)
    assert torch.allclose(found, none + 2 * (own - none), atol=1e-5)
    assert torch.equal(guided.denoiser(labels, 2.0)(x, 6.0), plain.denoise(x, 6.0, labels))
    away = jobs["away", 320][0].spec
    other = mixture_of(away.led.guide, finished.store, finished)
    assert (
        len(other.clusters) == 3
        and other.description["router"]["entry"] in jobs["away", 320][0].needs
    )


@pytest.mark.parametrize("recipe", ["data", "both", "led", "away"])
def test_an_exported_folder_answers_as_the_mixture(finished, tmp_path, recipe):
    folder = tmp_path / "out"
    export_recipe(finished, recipe, folder)
    done = alone(folder, "-n", "9", "--seed", "3")
    assert done.returncode == 0, done.stderr
    images, _ = load_exported(folder).draw(range(9), seed=3)
    assert images.std() > 1
    assert np.array_equal(cells(folder / "samples.png", 9), images)


def test_other_formats_of_an_export_name_the_recipe(finished, tmp_path):
    for kind in ("programs", "onnx", "diffusers"):
        with pytest.raises(
            UserError, match=f"--format {kind}: recipe data has partition: {{kind: data"
        ):
            export_recipe(finished, "data", tmp_path / "out", kind=kind)


def test_a_card_counts_experts_and_router(finished):
    text = card(finished, "data", 320, "# data")
    assert "3 experts" in text and "clusters: 3" in text


def test_what_samples_are_made_of_is_in_their_digest(finished):
    """The router's file, and how many experts answer, but not where its entry lies."""
    one, two = described(finished, "data"), described(finished, "both")
    assert identity(one) == one["digest"] and identity(two) == two["digest"]
    elsewhere = one | {"router": one["router"] | {"entry": "router/0"}}
    assert identity(elsewhere) == one["digest"]
    for other in ({"top": 2}, {"router": one["router"] | {"sha256": "0"}}):
        assert identity(one | other) != one["digest"]


def test_films_and_plans_of_clusters(finished, capsys):
    films = Films(finished)
    assert {name for name, _ in films.look()} == set(films.recipes) and films.complete
    found = planning.outlook(finished, "data")
    assert found.totals["experts_left"] == 0 and found.totals["routers"] == 0
    planning.show_plan(finished, "data", True, False)
    assert "nothing to train: 3 experts cached" in capsys.readouterr().out
    spare = yaml.safe_load(PARAMS)
    del spare["evaluate"]["consistency"]
    spare["recipes"] = {"data": spare["recipes"]["data"] | {"seed": 5}}
    (finished.root / "params.yaml").write_text(yaml.safe_dump(spare))
    try:
        again = planning.outlook(Workspace(finished.root))
    finally:
        (finished.root / "params.yaml").write_text(PARAMS)
    assert again.totals["routers"] == 1 and again.totals["router_flops"] > 0
    [drawn] = again.drawings
    spec = plan.experts(finished.params, facts_of(finished))["data"]
    each = flops_of(spec.experts[0].job.spec) + flops_of(spec.router.job.spec)
    assert drawn.flops_left == pytest.approx(drawn.evaluations_left * each)
