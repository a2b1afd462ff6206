import json
import math

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluation import scores
from pipeline.evaluation.fidelity import kernel_distance
from pipeline.evaluation.frechet import frechet_distance, half_split_bias, moments
from pipeline.evaluation.scores import features_warning, score, useless_features

CLASSES = 4
DIMENSION = 6
CENTRES = 3 * np.random.Generator(np.random.Philox(99)).standard_normal((CLASSES, DIMENSION))
SETTINGS = {"seed": 1, "neighbours": 3, "allow_few": False, "extractor": "some"}


def draw(seed, count):
    """Features of a world of four kinds of images, and their labels."""
    random = np.random.Generator(np.random.Philox(seed))
    labels = random.integers(CLASSES, size=count)
    return random.standard_normal((count, DIMENSION)) + CENTRES[labels], labels


def scored(real, generated, **settings):
    return score(moments(real, "digest"), real, generated, **SETTINGS | settings)


@pytest.fixture(scope="module")
def real():
    return draw(1, 800)


@pytest.fixture(scope="module")
def perfect(real):
    """Scores of new samples of the true distribution."""
    return scored(real[0], draw(2, 400)[0])


class TestKnownAnswers:
    def test_gaussians(self):
        # Independent features: |m1 - m2|^2 + sum (s1 - s2)^2, in the limit of many images.
        random = np.random.Generator(np.random.Philox(3))
        x = random.standard_normal((4000, 3)) * [1, 2, 3]
        y = random.standard_normal((500, 3)) * [2, 2, 1] + [0, 1, 0]
        expected = 1 + (1 + 0 + 4)
        result = scored(x, y, neighbours=1)
        assert result["fid_infinity"] == pytest.approx(
            expected, abs=3 * result["fid_infinity_error"]
        )
        assert result["fid_interval"][0] < expected < result["fid_interval"][1]

    def test_the_same_set(self, real):
        result = scored(real[0], real[0])
        assert result["fid"] == pytest.approx(0, abs=1e-10)
        assert result["fid_interval"] == pytest.approx([0, 0], abs=1e-9)
        assert (result["precision"], result["recall"], result["coverage"]) == (1, 1, 1)

    def test_one_half_against_the_other(self, real):
        # The truth is 0. The score is the bias, which the score of other halves tells.
        result = scored(real[0][:400], real[0][400:])
        other = half_split_bias(real[0], seed=5)
        low, high = result["fid_interval"]
        assert low < result["fid"] < high
        assert low < other.value < high
        assert abs(result["fid_infinity"]) < 3 * result["fid_infinity_error"]
        assert result["fid"] < 0.02 * np.trace(np.cov(real[0].T))
        assert result["precision"] > 0.85
        assert result["recall"] > 0.85
        assert result["coverage"] > 0.8

    def test_shifted(self, real, perfect):
        results = [scored(real[0], draw(2, 400)[0] + shift) for shift in (0.5, 1, 2)]
        for better, worse in zip([perfect, *results], results, strict=False):
            assert worse["fid"] > better["fid_interval"][1]
            assert worse["precision"] < better["precision"]
            assert worse["recall"] < better["recall"]
            assert worse["coverage"] < better["coverage"]
            assert worse["kid"] > better["kid"]
        # The means differ by 0.5 in each feature, and nothing else does.
        error = results[0]["fid_infinity_error"]
        assert results[0]["fid_infinity"] == pytest.approx(0.25 * DIMENSION, abs=3 * error)

    def test_one_sample_repeated(self, real, perfect):
        x = real[0]
        result = scored(x, np.tile(x[7], (400, 1)))
        expected = np.sum((x.mean(0) - x[7]) ** 2) + np.trace(np.cov(x.T))
        assert result["fid"] == pytest.approx(expected, rel=1e-9)
        assert result["precision"] == 1
        assert result["recall"] < 0.01
        assert result["coverage"] < 0.01
        assert result["fid"] > 10 * perfect["fid"]

    def test_one_class(self, real, perfect):
        samples, labels = draw(2, 1600)
        result = scored(real[0], samples[labels == 2])
        assert result["precision"] == pytest.approx(perfect["precision"], abs=0.05)
        assert result["recall"] < 0.3
        assert result["coverage"] < 0.3
        assert result["fid"] > 10 * perfect["fid"]

    def test_memorised(self, real):
        # Copies look better than anything new: these scores are no test of memorisation.
        copies, new = scored(real[0], real[0][:700]), scored(real[0], draw(2, 700)[0])
        assert copies["fid"] < new["fid"] / 4
        assert copies["precision"] == 1 > new["precision"]
        assert copies["recall"] > new["recall"]
        assert copies["coverage"] > new["coverage"]


class TestBias:
    def test_as_many_real_images_as_samples(self, real):
        floor = scored(real[0], draw(2, 300)[0])["floor"]
        split = half_split_bias(real[0], seed=1, samples=300, against=500)
        measured = {"fid": split.value, "samples": 300, "reference_samples": 500}
        assert floor["measured"] == measured
        assert (floor["samples"], floor["reference_samples"]) == (300, 800)
        assert floor["fid"] == pytest.approx(split.value * (800 + 300) / 800 * 500 / 800)

    def test_halves_where_there_are_too_few(self, real):
        floor = scored(real[0], draw(2, 800)[0])["floor"]
        split = half_split_bias(real[0], seed=1)
        assert floor["measured"] == {"fid": split.value, "samples": 400, "reference_samples": 400}
        assert floor["fid"] == pytest.approx(split.value / 2)

    @pytest.mark.parametrize("count", [100, 400, 800])
    def test_the_floor_is_what_new_images_of_the_same_kind_score(self, real, count):
        found, floors = [], []
        for seed in range(200):
            x = draw(100 + seed, 800)[0]
            floors.append(scores._floor(x, count, seed, False, {})["fid"])
            pair = moments(x), moments(draw(200 + seed, count)[0])
            found.append(frechet_distance(*pair).value)
        assert np.mean(floors) == pytest.approx(np.mean(found), rel=0.12)

    def test_too_few_even_for_halves(self):
        result = scored(draw(1, 2 * DIMENSION + 1)[0], draw(2, 20)[0])
        assert result["floor"] is None
        assert "more than 12 real images" in result["left_out"]["floor"]


GUESSES = {"task": "rotations", "accuracy": 0.25, "chance": 0.25, "holdout": 32}


class TestUseless:
    def test_no_value_is_called_a_score(self, real):
        reason = useless_features(GUESSES | {"learnt": False})
        assert "features.extractor" in reason and "features.images" in reason
        result = scored(real[0], real[0], useless=reason)
        for key in ("fid", "kid", "precision", "recall", "coverage", "floor", "per_class"):
            assert result[key] is None
        assert result["left_out"] == {"scores": reason}  # once, not for each of them
        assert (result["samples"], result["reference_samples"]) == (800, 800)

    def test_other_extractors_are_not_judged(self):
        for report in (GUESSES | {"learnt": True}, {"extractor": "inception"}):
            assert useless_features(report) is None and features_warning(report) is None

    def test_too_few_to_tell_leaves_the_scores_and_warns(self):
        found = {"task": "labels", "accuracy": 1.0, "chance": 0.5, "holdout": 6, "needed": 85}
        assert useless_features(found | {"learnt": None}) is None
        assert features_warning(found | {"learnt": None}) == (
            "features.extractor: this classifier of labels was tested on too few held-out images "
            "to tell it from guessing (accuracy 1.000, chance 0.500, 6 images), so the scores may "
            "mean nothing; use 850 images or more, 85 of them held out for the test, or another "
            "features.extractor"
        )
        useless = GUESSES | {"learnt": False}
        assert features_warning(useless) == useless_features(useless) is not None


class TestPerClass:
    def test_each_class_by_itself(self, real):
        samples, labels = draw(2, 600)
        samples = samples + (labels == 3)[:, None]  # class 3 is bad
        result = scored(real[0], samples, real_labels=real[1], labels=labels)
        found = result["per_class"]
        assert list(found) == ["0", "1", "2", "3"]
        pair = moments(real[0][real[1] == 2]), moments(samples[labels == 2])
        assert found["2"]["fid"] == frechet_distance(*pair).value
        assert [each["samples"] for each in found.values()] == np.bincount(labels).tolist()
        expected = np.bincount(real[1]).tolist()
        assert [each["reference_samples"] for each in found.values()] == expected
        good = [found[label] for label in "012"]
        assert found["3"]["fid"] > 5 * max(each["fid"] for each in good)
        assert found["3"]["precision"] < min(each["precision"] for each in good)
        assert found["3"]["recall"] < min(each["recall"] for each in good)

    def test_classes_with_few_samples(self, real):
        samples, labels = draw(2, 400)
        chosen = labels < 2
        chosen[np.flatnonzero(labels == 2)[:5]] = True
        result = scored(real[0], samples[chosen], real_labels=real[1], labels=labels[chosen])
        found = result["per_class"]
        assert found["1"]["fid"] is not None
        assert (found["2"]["samples"], found["2"]["fid"], found["2"]["recall"]) == (5, None, None)
        assert found["3"] == {
            "fid": None,
            "precision": None,
            "recall": None,
            "samples": 0,
            "reference_samples": np.count_nonzero(real[1] == 3),
        }
        reason = "needs 50 images of a class on both sides"
        keys = ("per_class.fid", "per_class.precision", "per_class.recall")
        assert result["left_out"] == dict.fromkeys(keys, reason)

    def test_more_features_than_a_class_has_samples(self):
        random = np.random.Generator(np.random.Philox(3))
        x, labels = random.standard_normal((240, 70)), np.arange(240) % 4
        result = scored(x, x[::-1], real_labels=labels, labels=labels[::-1])
        assert result["per_class"]["0"]["fid"] is None
        assert result["per_class"]["0"]["precision"] == 1
        assert "needs 71 images" in result["left_out"]["per_class.fid"]
        assert "per_class.recall" not in result["left_out"]

    def test_without_labels(self, real, perfect):
        assert perfect["per_class"] is None
        assert perfect["left_out"] == {"per_class": "the real images have no labels"}
        result = scored(real[0], draw(2, 100)[0], real_labels=real[1])
        assert result["left_out"] == {"per_class": "the samples have no labels"}


class TestResult:
    def test_numbers_that_were_there_before(self, real, perfect):
        samples = draw(2, 400)[0]
        kernel = kernel_distance(real[0], samples, seed=1, subsets=50, subset_size=400)
        assert perfect["fid"] == frechet_distance(moments(real[0]), moments(samples)).value
        assert (perfect["kid"], perfect["kid_std"]) == (kernel.mean, kernel.std)
        assert (perfect["samples"], perfect["reference_samples"]) == (400, 800)
        assert (perfect["extractor"], perfect["extractor_digest"]) == ("some", "digest")
        assert perfect["dimension"] == DIMENSION

    def test_plain_and_reproducible(self, real, perfect):
        text = json.dumps(perfect, allow_nan=False)
        assert json.loads(text) == perfect
        assert scored(real[0], draw(2, 400)[0]) == perfect
        other = scored(real[0], draw(2, 400)[0], seed=2)
        assert other["fid"] == perfect["fid"]
        assert other["fid_interval"] != perfect["fid_interval"]
        assert other["floor"] != perfect["floor"]

    def test_few_samples(self):
        x, y = draw(1, 200)[0], draw(2, DIMENSION)[0]
        with pytest.raises(UserError, match="more than 6"):
            scored(x, y)
        result = scored(x, y, allow_few=True)
        assert math.isfinite(result["fid"])
        assert result["fid_interval"] is result["fid_infinity"] is None
        assert set(result["left_out"]) == {"fid_interval", "fid_infinity", "per_class"}
        result = scored(x, draw(2, 8 * DIMENSION - 1)[0])
        assert (result["fid_infinity"], result["fid_infinity_error"]) == (None, None)
        assert "48 samples" in result["left_out"]["fid_infinity"]

    def test_many_features(self):
        random = np.random.Generator(np.random.Philox(3))
        x, y = random.standard_normal((2, 300, 257))
        result = scored(x, y)
        assert result["fid_infinity"] is None
        assert "257" in result["left_out"]["fid_infinity"]
        assert result["fid_interval"][0] < result["fid"] < result["fid_interval"][1]

    def test_moments_of_other_features(self, real):
        with pytest.raises(ValueError, match="moments of 800 images, features of 799"):
            score(moments(real[0]), real[0][1:], real[0], **SETTINGS)
