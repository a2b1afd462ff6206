import gzip
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

from pipeline.errors import UserError
from pipeline.evaluation import features
from pipeline.networks.classifier import Classifier
from pipeline.training.classifier import train_classifier
from pipeline.training.run import Interrupted

TRAINING = {"images_budget": 3000, "batch": 64, "learning_rate": 4e-3, "seed": 1}


def train(images, labels, **settings):
    """A training in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return train_classifier(images, labels, Path(folder), **settings)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return np.round(data.images * (255 / 16)).astype(np.uint8)[:, None], data.target


@pytest.fixture(scope="module")
def trained(digits):
    return train(*digits, **TRAINING)


def noise(seed, *shape):
    return np.random.Generator(np.random.Philox(seed)).integers(0, 256, shape, dtype=np.uint8)


class TestClassifier:
    @pytest.mark.parametrize(
        ("channels", "height", "width"), [(1, 8, 8), (1, 28, 28), (3, 64, 48), (4, 5, 5), (3, 2, 2)]
    )
    def test_shapes(self, channels, height, width):
        model = Classifier(in_channels=channels, size=max(height, width), classes=7, dimension=40)
        images = torch.from_numpy(noise(1, 5, channels, height, width))
        assert model.features(images).shape == (5, 40)
        assert model(images).shape == (5, 7)

    def test_weights_come_from_the_seed_alone(self):
        settings = {"in_channels": 1, "size": 8, "classes": 3}
        torch.manual_seed(5)
        first = Classifier(**settings, seed=1).state_dict()
        torch.manual_seed(6)
        same, other = Classifier(**settings, seed=1), Classifier(**settings, seed=2)
        assert all(torch.equal(first[k], v) for k, v in same.state_dict().items())
        assert not torch.equal(first["stem.weight"], other.state_dict()["stem.weight"])

    def test_features_of_an_image_do_not_depend_on_its_batch(self):
        model = Classifier(in_channels=3, size=16, classes=3)
        images = torch.from_numpy(noise(1, 8, 3, 16, 16))
        alone = torch.cat([model.features(images[i : i + 1]) for i in range(8)])
        torch.testing.assert_close(model.features(images), alone, rtol=1e-5, atol=1e-5)

    def test_odd_widths(self):
        with pytest.raises(UserError, match="dimension=30"):
            Classifier(in_channels=1, size=8, classes=3, dimension=30)


class TestTraining:
    def test_learns_digits(self, trained):
        module, report = trained
        assert report["accuracy"] > 0.93 and report["learnt"]
        assert report["task"] == "labels"
        assert (report["classes"], report["images"], report["holdout"]) == (10, 2944, 180)
        assert report["loss"] < 0.3
        assert not module.training

    def test_holdout_is_not_trained_on(self, digits):
        # Labels without any pattern: what is learnt by heart cannot be known of held-out images.
        images, _ = digits
        labels = noise(3, len(images)) % 2
        _, report = train(
            images[:200],
            labels[:200],
            holdout=0.5,
            **TRAINING | {"batch": 50, "images_budget": 1800},
        )
        assert report["loss"] < 0.3
        assert 0.3 < report["accuracy"] < 0.7
        assert not report["learnt"] and report["chance"] == np.bincount(labels[:200]).max() / 200

    def test_deterministic(self, digits):
        settings = TRAINING | {"images_budget": 640}
        torch.manual_seed(5)
        first, report = train(*digits, **settings)
        torch.manual_seed(6)
        second, same_report = train(*digits, **settings)
        other, _ = train(*digits, **settings | {"seed": 2})
        assert report == same_report
        weights = second.state_dict()
        assert all(torch.equal(v, weights[k]) for k, v in first.state_dict().items())
        assert not torch.equal(other.state_dict()["head.weight"], weights["head.weight"])

    def test_rotations(self, digits):
        _, report = train(digits[0], None, **TRAINING)
        assert (report["task"], report["classes"]) == ("rotations", 4)
        assert report["accuracy"] > 0.7 and report["learnt"]
        assert report["chance"] == 0.25
        # One label has nothing to teach.
        _, same = train(digits[0], np.zeros_like(digits[1]), **TRAINING)
        assert same == report
        # Images that look alike in all directions.
        images = np.repeat(noise(4, 400), 36).astype(np.uint8).reshape(400, 1, 6, 6)
        _, report = train(images, None, **TRAINING | {"images_budget": 640})
        assert (report["accuracy"], report["learnt"]) == (0.25, False)

    def test_always_right_on_too_few_is_neither_learnt_nor_guessed(self, digits):
        # Guessing gives 6 right answers of 6 once in 64 times.
        images, labels = (part[digits[1] < 2][:60] for part in digits)
        _, report = train(images, labels, **TRAINING | {"batch": 30})
        assert (report["holdout"], report["accuracy"]) == (6, 1.0)
        assert report["chance"] == np.bincount(labels).max() / 60 == 31 / 60
        assert report["learnt"] is None and report["needed"] == 88

    def test_turns_by_right_angles(self, digits):
        # A corner marks the direction, so four classes are easy; all else is equal.
        images = np.zeros((400, 1, 6, 6), np.uint8)
        images[:, :, :2, :3] = 128 + noise(1, 400, 1, 2, 3) // 2
        _, report = train(images, None, **TRAINING | {"images_budget": 2000})
        assert report["accuracy"] == 1

    def test_progress(self, digits):
        seen = []
        settings = TRAINING | {"images_budget": 700}
        _, report = train(*digits, **settings, progress=seen.append)
        assert (seen[-1].images, seen[-1].total) == (640, 640)
        assert seen[-1].loss == report["loss"]

    @pytest.mark.parametrize("labelled", [True, False])
    def test_interrupted_anywhere_it_ends_with_the_same_bits(self, digits, tmp_path, labelled):
        images, labels = digits[0][:200], digits[1][:200] if labelled else None
        settings = TRAINING | {"images_budget": 700}
        whole, report = train(images, labels, **settings)
        said = []
        for batches in (2, 1, 5):  # 180 rows are trained on: within and across permutations
            calls = iter([False] * (batches - 1) + [True])
            with pytest.raises(Interrupted):
                train_classifier(
                    images, labels, tmp_path, stop=lambda calls=calls: next(calls), **settings
                )
        parts, same = train_classifier(images, labels, tmp_path, log=said.append, **settings)
        assert said == ["resumes at 512 images"] and same == report
        for name, weight in whole.state_dict().items():
            assert torch.equal(weight, parts.state_dict()[name]), name

    def test_a_damaged_checkpoint_is_never_trusted(self, digits, tmp_path):
        settings = TRAINING | {"images_budget": 300}
        whole, report = train(*digits, **settings)
        train_classifier(*digits, tmp_path, **settings)
        (path,) = (tmp_path / "state").glob("checkpoint-*.pt")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        said = []
        again, same = train_classifier(*digits, tmp_path, log=said.append, **settings)
        assert said == [f"{path.name}: damaged"] and same == report
        for name, weight in whole.state_dict().items():
            assert torch.equal(weight, again.state_dict()[name]), name

    def test_a_training_that_diverges_ends_early(self, digits):
        seen = []
        settings = TRAINING | {"learning_rate": 1e20}
        with pytest.raises(UserError, match=r"diverged at learning_rate=1e\+20"):
            train(*digits, **settings, stop=lambda: seen.append(1))
        assert len(seen) < 3000 // 64 / 2

    def test_one_label_for_all_teaches_as_much_as_none(self, digits):
        images, labels = digits
        settings = TRAINING | {"images_budget": 640}
        one, report = train(images, np.full_like(labels, 3), **settings)
        none, _ = train(images, None, **settings)
        assert report["task"] == "rotations"
        for name, weight in one.state_dict().items():
            assert torch.equal(weight, none.state_dict()[name]), name

    def test_refusals(self, digits):
        images, labels = digits
        with pytest.raises(UserError, match="square"):
            train(images[:, :, :6], None, **TRAINING)
        with pytest.raises(UserError, match="too few"):
            train(images[:60], labels[:60], **TRAINING)
        with pytest.raises(UserError, match="diverged"):
            train(images, labels, **TRAINING | {"learning_rate": 1e20, "images_budget": 640})
        with pytest.raises(ValueError, match="uint8"):
            train(images.astype(float), labels, **TRAINING)
        with pytest.raises(ValueError, match="10 classes"):
            train(images, labels + 1, classes=10, **TRAINING)

    @pytest.mark.slow
    def test_learns_digits_well(self, digits):
        _, report = train(*digits, **TRAINING | {"images_budget": 20_000})
        assert report["accuracy"] > 0.97

    @pytest.mark.slow
    def test_learns_fashion(self):
        folder = Path("/usr/share/datasets/fashion-mnist")
        if not folder.is_dir():
            pytest.skip("the dataset-fashion-mnist package is not installed")

        def read(name, header):
            data = gzip.decompress((folder / name).read_bytes())
            shape = struct.unpack(f">{header}i", data[4 : 4 + 4 * header])
            return np.frombuffer(data, np.uint8, offset=4 + 4 * header).reshape(shape)

        images = read("train-images-idx3-ubyte.gz", 3)[:, None]
        labels = read("train-labels-idx1-ubyte.gz", 1)
        _, report = train(images, labels, **TRAINING | {"images_budget": 60_000})
        assert report["accuracy"] > 0.88


class TestExtractor:
    def test_classifier_features(self, trained, digits):
        module, images = trained[0], digits[0][:70]
        extractor = features.classifier_extractor(module, batch=32)
        got = extractor.features(images)
        assert (got.shape, got.dtype, extractor.dimension) == ((70, 64), np.float32, 64)
        with torch.no_grad():
            expected = module.features(torch.from_numpy(images))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        assert extractor.features(images[:0]).shape == (0, 64)
        assert extractor.features(images[:, :, ::-1]).shape == (70, 64)

    def test_save_and_load(self, trained, digits, tmp_path):
        module, report = trained
        extractor = features.classifier_extractor(module)
        first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
        features.save_extractor(module, first, report)
        features.save_extractor(module, second, dict(reversed(report.items())))
        assert first.read_bytes() == second.read_bytes()
        loaded = features.load_extractor(first)
        assert loaded.digest == extractor.digest
        images = digits[0][:40]
        np.testing.assert_array_equal(loaded.features(images), extractor.features(images))
        assert len(list(tmp_path.iterdir())) == 2

    def test_digest_follows_the_weights(self, trained):
        before = features.classifier_extractor(trained[0]).digest
        other = Classifier(**trained[0].settings)
        other.load_state_dict(trained[0].state_dict())
        assert features.classifier_extractor(other).digest == before
        with torch.no_grad():
            other.head.bias[3] += 1e-4
        assert features.classifier_extractor(other).digest != before

    def test_damaged_files(self, trained, tmp_path):
        path = tmp_path / "extractor.safetensors"
        with pytest.raises(UserError, match="no such file"):
            features.load_extractor(path)
        features.save_extractor(trained[0], path, trained[1])
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[-5] ^= 1
        for damaged in (b"", b"text" * 9, whole[:-1], bytes(flipped)):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=r"extractor\.safetensors"):
                features.load_extractor(path)
        save_file({"a": torch.zeros(3)}, path)
        with pytest.raises(UserError, match="not a classifier"):
            features.load_extractor(path)

    def test_refused_inputs(self, trained, digits):
        extractor = features.classifier_extractor(trained[0])
        with pytest.raises(UserError, match="1 channels, these have 3"):
            extractor.features(noise(1, 4, 3, 8, 8))
        with pytest.raises(ValueError, match="uint8"):
            extractor.features(digits[0].astype(np.float32))
        with pytest.raises(ValueError, match="uint8"):
            extractor.features(digits[0][0])


MODULE = """
import torch

class Sums(torch.nn.Module):
    dimension = 2

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(2))

    def forward(self, images):
        assert images.dtype == torch.uint8
        return images.to(torch.float64).sum((1, 2, 3))[:, None] * self.weight

class Wrong(Sums):
    dimension = 3

class Broken(Sums):
    def forward(self, images):
        return super().forward(images) / images.sum((1, 2, 3))[:, None]

class Needy(Sums):
    def __init__(self, size):
        super().__init__()

class Plain(torch.nn.Module):
    pass
"""


class TestModule:
    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "networks.py"
        path.write_text(MODULE)
        return path

    def test_with_weights(self, file, tmp_path):
        weights = tmp_path / "w.safetensors"
        save_file({"weight": torch.tensor([1.0, -2.0])}, weights)
        extractor = features.module_extractor(f"{file}:Sums", weights)
        images = noise(1, 5, 3, 4, 4)
        total = images.sum((1, 2, 3), dtype=np.int64)
        np.testing.assert_allclose(extractor.features(images), np.stack([total, -2 * total], 1))
        assert extractor.dimension == 2
        save_file({"weight": torch.tensor([1.0, -3.0])}, weights)
        other = features.module_extractor(f"{file}:Sums", weights)
        assert other.digest != extractor.digest

    def test_without_weights_draws_the_same_ones(self, file):
        torch.manual_seed(5)
        state = torch.get_rng_state()
        first = features.module_extractor(f"{file}:Sums")
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(6)
        assert features.module_extractor(f"{file}:Sums").digest == first.digest
        file.write_text(MODULE + "\n# changed\n")
        assert features.module_extractor(f"{file}:Sums").digest != first.digest

    def test_wrong_results(self, file):
        images = noise(1, 5, 3, 4, 4)
        with pytest.raises(UserError, match=r"Wrong: returned \[5, 2\], not a tensor \[5, 3\]"):
            features.module_extractor(f"{file}:Wrong").features(images)
        broken = features.module_extractor(f"{file}:Broken", batch=2)
        assert broken.features(images).shape == (5, 2)
        images[3] = 0
        with pytest.raises(UserError, match="Broken: NaN or infinity in the features of images 2"):
            broken.features(images)

    def test_refusals(self, file, tmp_path):
        for source, message in [
            (str(file), "must be path/to/file.py:ClassName"),
            (f"{tmp_path}/none.py:Sums", "none.py: cannot be read"),
            (f"{file}:Missing", "has no attribute 'Missing'"),
            (f"{file}:Needy", "missing 1 required positional argument"),
            (f"{file}:Plain", "no attribute 'dimension'"),
            (f"{file}:torch", "cannot be made"),
        ]:
            with pytest.raises(UserError, match=message):
                features.module_extractor(source)
        weights = tmp_path / "w.safetensors"
        with pytest.raises(UserError, match="no such file"):
            features.module_extractor(f"{file}:Sums", weights)
        save_file({"weight": torch.zeros(3)}, weights)
        with pytest.raises(UserError, match=r"does not fit .*size mismatch"):
            features.module_extractor(f"{file}:Sums", weights)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """torch-fidelity's network and a file with its weights, which are drawn: the real ones are
    a download."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        patch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *a, **k: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return network, path


class TestTorchFidelity:
    def test_missing_package(self, monkeypatch):
        # What Python does for a module that is not there.
        monkeypatch.setitem(sys.modules, "torch_fidelity", None)
        for name in ("inception", "dinov2"):
            with pytest.raises(UserError, match=r"pip install .* '\.\[fid\]'"):
                features.torch_fidelity_extractor(name)

    def test_missing_weights(self):
        with pytest.raises(UserError, match=r"none\.pth: no such file"):
            features.torch_fidelity_extractor("inception", weights="none.pth")

    @pytest.mark.slow
    def test_inception_with_local_weights(self, inception):
        network, path = inception
        extractor = features.torch_fidelity_extractor("inception", weights=path, batch=2)
        grey = noise(1, 3, 1, 16, 16)
        got = extractor.features(grey)
        assert got.shape == (3, 2048)
        rgb = np.repeat(grey, 3, axis=1)
        np.testing.assert_array_equal(extractor.features(rgb), got)
        # Batches of other sizes may add in another order.
        with torch.no_grad():
            np.testing.assert_allclose(network(torch.from_numpy(rgb))[0], got, rtol=1e-4, atol=1e-5)
        with pytest.raises(UserError, match="1 or 3 channels"):
            extractor.features(noise(1, 2, 2, 16, 16))
        again = features.torch_fidelity_extractor("inception", weights=path)
        assert again.digest == extractor.digest

    @pytest.mark.slow
    def test_equals_the_features_that_torch_fidelity_scores(self, inception):
        from torch_fidelity import utils

        class Images(torch.utils.data.Dataset):
            def __len__(self):
                return len(images)

            def __getitem__(self, index):
                return torch.from_numpy(images[index])

        images = noise(2, 6, 3, 20, 20)
        settings = {"cuda": False, "verbose": False, "cache": False}
        known = utils.create_feature_extractor(
            "inception-v3-compat",
            ["2048"],
            feature_extractor_weights_path=str(inception[1]),
            **settings,
        )
        expected = utils.extract_featuresdict_from_input_id(
            1, known, input1=Images(), batch_size=3, **settings
        )
        extractor = features.torch_fidelity_extractor("inception", inception[1], batch=3)
        np.testing.assert_array_equal(extractor.features(images), expected["2048"])

    def test_input_of_inception(self, inception):
        # Bilinear as in TensorFlow 1: pixel i of the result is at i * (size / 299), not at
        # (i + 1/2) * (size / 299) - 1/2, and what lies beyond the last pixel repeats it.
        extractor = features.torch_fidelity_extractor("inception", weights=inception[1])
        seen = []
        hook = extractor._module.Conv2d_1a_3x3.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0])
        )
        images = noise(4, 1, 1, 7, 7)
        extractor.features(images)
        hook.remove()
        where = np.arange(299) * (7 / 299)
        low = where.astype(int)
        high, weight = np.minimum(low + 1, 6), where - low
        picture = images[0, 0].astype(np.float64)
        rows = picture[low] * (1 - weight)[:, None] + picture[high] * weight[:, None]
        resized = rows[:, low] * (1 - weight) + rows[:, high] * weight
        expected = np.broadcast_to((resized - 128) / 128, (1, 3, 299, 299))
        np.testing.assert_allclose(seen[0], expected, atol=1e-5)

    def test_unusable_weights(self, tmp_path):
        pytest.importorskip("torch_fidelity")
        path = tmp_path / "weights.pth"
        path.write_bytes(b"nothing")
        with pytest.raises(UserError, match="cannot load its weights"):
            features.torch_fidelity_extractor("inception", weights=path)
        with pytest.raises(UserError, match=r"dinov2: torch-fidelity cannot load .* from a file"):
            features.torch_fidelity_extractor("dinov2", weights=path)


def test_saved_weights_are_plain(trained, tmp_path):
    path = tmp_path / "extractor.safetensors"
    features.save_extractor(trained[0], path, trained[1])
    weights = load_file(path)
    assert set(weights) == set(trained[0].state_dict())
    assert torch.equal(weights["stem.weight"], trained[0].state_dict()["stem.weight"])
