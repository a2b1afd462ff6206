"""The synthetic source and the scores against its law."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, chisquare

from pipeline import plan
from pipeline.data.dataset import open_dataset, prepare
from pipeline.data.sources import synthetic
from pipeline.data.sources.open import open_source
from pipeline.errors import UserError
from pipeline.evaluation.law import COMPARED, compared
from pipeline.params.load import resolve
from stages.report.write import PASSED_ON
from tests.test_inspection import make, small_workspace
from tests.test_published import planned

CHANCES = synthetic.shares() / synthetic.shares().sum()
TEMPLATES = synthetic.templates().transpose(0, 3, 1, 2)


def rows(count: int, split: str = "train", first: int = 0) -> np.ndarray:
    return TEMPLATES[synthetic.drawn(split, first, count)]


def shape_of(places: np.ndarray) -> np.ndarray:
    return places // CHANCES[0].size


# --- the law and its draws ----------------------------------------------------------------------


def test_the_law_is_the_stated_one():
    assert synthetic.shares().sum() == 10**6 and synthetic.shares().min() > 0
    marginal = {name: np.einsum(f"scrkz->{letters}", CHANCES) for name, letters in COMPARED.items()}
    assert np.allclose(marginal["shape"], [0.5, 0.3, 0.2])
    assert np.allclose(marginal["size"], [0.2, 0.5, 0.3])
    assert np.allclose(marginal["position"], np.outer([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]))
    assert np.allclose(marginal["colour"], [0.248, 0.157, 0.207, 0.133, 0.155, 0.1])
    # Colours depend on the shape, all else on nothing.
    apart = np.outer(marginal["shape"], marginal["colour"])
    assert abs(marginal["shape_colour"] - apart).sum() / 2 > 0.2
    rest = np.einsum("sc,rk,z->scrkz", *(marginal[n] for n in ("shape_colour", "position", "size")))
    assert np.allclose(rest, CHANCES)


def test_every_combination_has_an_image_of_its_own_that_shows_it():
    flat = TEMPLATES.reshape(len(TEMPLATES), -1).astype(int)
    assert len(np.unique(flat, axis=0)) == CHANCES.size
    every = np.ndindex(CHANCES.shape)
    for image, (shape, colour, row, column, size) in zip(TEMPLATES, every, strict=True):
        side = list(synthetic.SIZES)[size]
        inside = (image != np.array(synthetic.BACKGROUND)[:, None, None]).any(axis=0)
        top, left = (synthetic.CORNERS[i] + (synthetic.BOX - side) // 2 for i in (row, column))
        tall, wide = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        assert (tall[0], tall[-1], wide[0], wide[-1]) == (
            *(top, top + side - 1),
            *(left, left + side - 1),
        )
        colours = np.unique(image[:, inside], axis=1)
        assert colours[:, 0].tolist() == list(list(synthetic.COLOURS.values())[colour])
        assert colours.shape == (3, 1)
        area = inside.sum() / side**2
        assert [area == 1, 0.7 < area < 0.9 or side == 4, area <= 0.75][shape]


@pytest.mark.parametrize("split", ["train", "test"])
def test_draws_follow_the_law(split):
    count = 50_000
    found = np.bincount(synthetic.drawn(split, 0, count), minlength=CHANCES.size)
    for letters in COMPARED.values():
        observed = np.einsum(f"scrkz->{letters}", found.reshape(CHANCES.shape)).ravel()
        expected = count * np.einsum(f"scrkz->{letters}", CHANCES).ravel()
        often = expected >= 5  # as the test wants it; the rest together
        both = [np.append(v[often], v[~often].sum()) for v in (observed, expected)]
        both = [v[: len(v) - often.all()] for v in both]
        assert chisquare(*both).pvalue > 1e-3, letters


def test_a_row_depends_on_its_split_and_number_alone(tmp_path):
    whole = synthetic.drawn("train", 0, 5000)
    assert np.array_equal(synthetic.drawn("train", 4000, 1000), whole[4000:])
    assert not np.array_equal(synthetic.drawn("test", 0, 5000), whole)
    samples = list(open_source("synthetic", limit=5000).samples)
    assert np.array_equal(np.stack([s.image for s in samples]), synthetic.templates()[whole])
    assert [s.label for s in samples] == shape_of(whole).tolist()
    info = prepare(tmp_path / "data.parquet", source="synthetic", limit=300)
    assert (info.rows, info.resolution, info.channels, info.classes) == (
        *(300, 16, 3),
        ("square", "disc", "triangle"),
    )
    found = open_dataset(tmp_path / "data.parquet").images(0, 300)
    assert np.array_equal(found, TEMPLATES[whole[:300]])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("", "data.limit: missing; `synthetic` draws as many"),
        (", limit: 100, resolution: 8", "data.resolution: 8 would change"),
        (", limit: 100, channels: 1", "data.channels: 1 would change"),
        (", limit: 100, duplicates: drop", "data.duplicates: drop would change"),
    ],
)
def test_what_would_break_the_law_is_refused(keys, said):
    import yaml

    data = yaml.safe_load(f"{{source: synthetic{keys}}}")
    with pytest.raises(UserError, match=said):
        resolve({"data": data, "recipes": {"one": {}}})


def test_mirrored_images_are_refused():
    """A shape would stand on the right as often as on the left."""
    latent = {"encoder": "pixels", "flips": True}
    data = {"source": "synthetic", "limit": 100}
    with pytest.raises(UserError, match=r"latent\.flips: mirrored images are not of the law"):
        resolve({"data": data, "latent": latent, "recipes": {"one": {}}})
    resolve({"data": {}, "latent": latent, "recipes": {"one": {}}})


def test_it_has_a_place_of_its_own(tmp_path):
    with pytest.raises(UserError, match=r"data\.path: synthetic images are drawn here"):
        open_source("synthetic", tmp_path, limit=10)
    with pytest.raises(UserError, match=r"data\.limit: missing"):
        open_source("synthetic")


# --- scores -------------------------------------------------------------------------------------


def test_real_samples_score_the_floor_which_is_the_binomials_mean_deviation():
    count, sets = 2000, 40
    scores = [compared(rows(count, "test", count * i), None, 0) for i in range(sets)]
    floor = scores[0]["law"]["floor"]
    for name, letters in COMPARED.items():
        chances = np.einsum(f"scrkz->{letters}", CHANCES).ravel()
        most = np.floor(count * chances) + 1  # De Moivre's mean absolute deviation
        deviation = 2 * most * (1 - chances) * binom.pmf(most, count, chances)
        assert floor[name]["mean"] == pytest.approx(deviation.sum() / count / 2, rel=0.05)
        found = np.array([score[f"tv_{name}"] for score in scores])
        error = found.std() / np.sqrt(sets)
        assert abs(found.mean() - floor[name]["mean"]) < 4 * error
        assert (found > floor[name]["high"]).mean() < 0.2
        assert floor[name]["high"] > floor[name]["mean"]
    assert {score["off_law"] for score in scores} == {0.0}


def test_a_shifted_sampler_is_caught_with_the_distance_of_its_shift():
    """Of the squares, every second becomes the disc that stands in its place."""
    count = 20_000
    places = synthetic.drawn("test", 0, count)
    squares = np.flatnonzero(shape_of(places) == 0)[::2]
    places[squares] += CHANCES[0].size
    found = compared(TEMPLATES[places], None, 0)
    floor = found["law"]["floor"]
    assert found["tv_shape"] == pytest.approx(0.25, abs=floor["shape"]["high"])
    expected = abs(CHANCES[0].sum((1, 2, 3)) / 2).sum() / 2
    moved = CHANCES.sum((2, 3, 4))
    moved[1] += moved[0] / 2
    moved[0] /= 2
    expected = abs(moved - CHANCES.sum((2, 3, 4))).sum() / 2
    assert found["tv_shape_colour"] == pytest.approx(expected, abs=floor["shape_colour"]["high"])
    for unmoved in ("colour", "position", "size"):
        assert found[f"tv_{unmoved}"] <= 1.5 * floor[unmoved]["high"]


def test_what_stands_off_the_law_counts_as_what_is_nearest():
    count = 500
    noise = np.random.default_rng(0).normal(0, 8, (count, 3, 16, 16))
    clean = rows(count)
    noisy = np.clip(clean + noise, 0, 255).round().astype(np.uint8)
    found, real = compared(noisy, None, 0), compared(clean, None, 0)
    assert all(found[f"tv_{name}"] == real[f"tv_{name}"] for name in COMPARED)
    root = np.sqrt(np.mean((noisy.astype(float) - clean) ** 2))
    assert found["off_law"] == pytest.approx(root) and real["off_law"] == 0


def test_with_labels_the_law_is_that_of_the_shapes_asked_for():
    places = np.concatenate([np.flatnonzero(shape_of(np.arange(CHANCES.size)) == 1)] * 4)
    labels = np.ones(len(places), np.int64)
    obeyed = compared(TEMPLATES[places], labels, 0)
    assert obeyed["as_asked"] == 1 and obeyed["tv_shape"] == pytest.approx(0, abs=1e-12)
    own = CHANCES[1] / CHANCES[1].sum()
    colours = abs(own.sum((1, 2, 3)) - 1 / 6).sum() / 2
    assert obeyed["tv_colour"] == pytest.approx(colours)
    assert obeyed["law"]["floor"]["shape"]["high"] < 1e-12
    ignored = compared(TEMPLATES[places], np.arange(len(places)) % 2, 0)
    assert ignored["as_asked"] == 0.5 and ignored["tv_shape"] == pytest.approx(0.5)


# --- the stage ----------------------------------------------------------------------------------

PARAMS = """\
seed: 0
data: {source: synthetic, limit: 200}
latent: {encoder: pixels}
features: {dimension: 8, channels: 8, images: 64}
evaluate: {samples: 100}
defaults: {}
recipes: {one: {}}
"""


def test_scores_of_synthetic_images_have_the_law_and_those_of_others_do_not(tmp_path, monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)
    workspace = small_workspace(tmp_path / "tspace", PARAMS)
    reference, scored = planned(workspace, rows(100, "test"))
    assert scored.spec.as_json()["law"] == {"source": "synthetic"}
    assert all(make(workspace, [reference, scored]))
    found = workspace.store.entry(scored.name).load_json("scores.json")
    expected = compared(rows(100, "test"), None, 0)
    assert {key: found[key] for key in expected} == expected
    assert expected.keys() <= set(PASSED_ON) and found["samples"] == 100
    assert scored.spec.code == plan.code_of("scores", scored.spec.law) != plan.code_of("scores")
    other = small_workspace(tmp_path / "other", PARAMS.replace("synthetic", "digits"))
    _, plain = planned(other, np.zeros((100, 1, 8, 8), np.uint8))
    assert "law" not in plain.spec.as_json()
