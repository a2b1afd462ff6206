"""Classes of samples: in the proportions of the images trained on, and never an absent one."""

import numpy as np
import pytest
from safetensors.torch import save_file

from pipeline import plan
from pipeline.data import dataset
from pipeline.networks.build import network_of
from pipeline.params.load import resolve
from pipeline.sampling.mixture import Mixture, describe, draw, member
from pipeline.specs import NetworkSpec
from stages.report.write import PASSED_ON

# Five names, of which two occur: 90 dark images and 10 bright ones.
COUNTS = (90, 10, 0, 0, 0)
FACTS = plan.DatasetFacts("d" * 64, 100, 4, 1, 5, (77.0,), (80.0,), class_counts=COUNTS)
NETWORK = {"channels": 8, "multipliers": [1]}


def planned(labels="dataset", conditional=True):
    params = resolve(
        {
            "evaluate": {"samples": 100, "shard": 60, "labels": labels},
            "defaults": {"training": {"images": 100, "batch": 10}},
            "recipes": {
                "one": {
                    "schedule": {"kind": "log-snr", "states": 2},
                    "network": NETWORK | {"class_conditional": conditional},
                }
            },
        }
    )
    recipe = plan.experts(params, FACTS)["one"]
    expert = recipe.experts[0]
    file = {"entry": expert.job.name, "file": "w.safetensors", "sha256": "0"}
    part = member(file, expert.job.spec, 0, 1)
    states = [float(v) for v in recipe.log_snr]
    mixture = describe(expert.job.spec, states, [part], [77.0], 80.0)
    jobs = plan.samples(params, FACTS, recipe, mixture, "one")
    return jobs, plan.scores(params, FACTS, jobs, plan.features(params, FACTS), "one")


def drawn(jobs, folder):
    """The labels that the jobs draw, with a network that learnt nothing."""
    spec = jobs[0].spec
    given = spec.mixture | spec.mixture["experts"][0]
    own = NetworkSpec(**{k: given[k] for k in NetworkSpec.model_fields if k in given})
    save_file(network_of(own, seed=1).state_dict(), folder / "w.safetensors")
    mixture = Mixture(spec.mixture, lambda part: folder / part["file"])
    found = [
        draw(
            mixture,
            job.spec.states,
            range(job.spec.first, job.spec.last),
            seed=job.spec.seed,
            class_counts=job.spec.class_counts,
            sampling=job.spec.sampling,
        )[1]
        for job in jobs
    ]
    return np.concatenate(found)


@pytest.mark.parametrize(
    ("labels", "expected"), [("dataset", [90, 10, 0, 0, 0]), ("uniform", [50, 50, 0, 0, 0])]
)
def test_scored_samples_have_the_datasets_proportions(tmp_path, labels, expected):
    jobs, scored = planned(labels)
    assert len(jobs) == 2
    assert np.bincount(drawn(jobs, tmp_path), minlength=5).tolist() == expected
    assert scored.spec.labels == labels and "labels" in PASSED_ON


def test_other_proportions_are_other_samples_and_only_where_classes_are_known():
    names = [{job.name for job in planned(labels)[0]} for labels in ("dataset", "uniform")]
    assert not names[0] & names[1]
    plain = [planned(labels, conditional=False) for labels in ("dataset", "uniform")]
    assert [j.name for j in plain[0][0]] == [j.name for j in plain[1][0]]
    assert plain[0][1].name == plain[1][1].name
    assert plain[0][0][0].spec.class_counts == [] and plain[0][1].spec.labels is None


def test_labels_that_start_at_one_make_an_empty_class_that_is_never_drawn(tmp_path):
    images = np.zeros((30, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "raw.npz", images=images, labels=np.repeat([1, 2], [20, 10]))
    info = dataset.prepare(tmp_path / "data", source="npz", path=tmp_path / "raw.npz")
    assert info.class_counts == (0, 20, 10)
    assert dataset.open_dataset(tmp_path / "data").info == info
    assert plan.facts(info).class_counts == (0, 20, 10)
    assert plan.facts(info, held_out=3).class_counts == (0, 18, 9)
