"""Which results an edit of the code makes again: typical edits, on a copy of the project."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Digests of every kind of job, with the forms that are defaults, and the names of planned experts.
SAY = """
import json
from pathlib import Path
from pipeline import plan
from pipeline.levels.params import UniformCurriculum
from pipeline.networks.params import UNet
from pipeline.params.load import load
from pipeline.sampling.params import DdimSampling
forms = {"expert": [UNet(), UniformCurriculum()], "router": [UniformCurriculum()]}
forms |= {"samples": [UNet(), DdimSampling()], "outputs": [UNet()], "errors": [UNet()]}
found = {kind: plan.code_of(kind, *forms.get(kind, ())) for kind in plan.CODE}
facts = plan.DatasetFacts("0" * 64, 1000, 16, 1, 10, (127.5,), (73.9,), class_counts=(100,) * 10)
params = load(Path("params.yaml"))
shards = plan.latents(params, facts)
found["planned"] = [job.name for job in [*shards, plan.features(params, facts)]]
for recipe in plan.experts(params, facts).values():
    found["planned"] += [expert.job.name for expert in recipe.experts]
print(json.dumps(found))
"""
KINDS = {"encoder", "latents", "spectrum", "bounds", "pilot", "features", "pairing", "expert"}
KINDS |= {"clusters", "router", "merged", "samples", "reconstructions", "scores", "errors"}
KINDS |= {"outputs", "consistency"}


def replace(path: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        text = (root / path).read_text()
        assert text.count(old) == 1, f"{path}: {text.count(old)} times {old!r}"
        (root / path).write_text(text.replace(old, new))

    return edit


def add(path: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / path).write_text(
        ((root / path).read_text() if (root / path).exists() else "") + text
    )


def edits(*them: Callable[[Path], None]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        for one in them:
            one(root)

    return edit


def move_the_classifier(root: Path) -> None:
    old, new = root / "pipeline/training/classifier.py", root / "pipeline/training/guesses.py"
    old.rename(new)
    for path in [*root.rglob("pipeline/**/*.py"), *root.rglob("stages/**/*.py")]:
        text = path.read_text()
        path.write_text(text.replace("pipeline.training.classifier", "pipeline.training.guesses"))


SAMPLER = '''"""Half of DDPM's noise."""

from pipeline.sampling.samplers import Sample, ddim


def half(*, noise: float) -> Sample:
    return ddim(eta=noise)
'''
SAMPLER_KEYS = '''class HalfSampling(Walk):
    """Half of DDPM's noise."""

    made_by: ClassVar[str] = "pipeline.sampling.half:half"
    kind: Literal["half"]
    noise: Share = 0.5


Sampling = (
    HalfSampling
    | '''
SCHEDULE = '''"""States between 5 and -5."""

import numpy as np


def squeezed(states: int) -> np.ndarray:
    return np.linspace(5.0, -5.0, states)
'''
SCHEDULE_KEYS = '''class SqueezedSchedule(Form):
    """Between 5 and -5."""

    made_by: ClassVar[str] = "pipeline.levels.squeezed:squeezed"
    kind: Literal["squeezed"]
    states: States = 16


Schedule = (
    SqueezedSchedule
    | '''
CURRICULUM = '''"""The middle state alone."""

import numpy as np


def middle(axis):
    return axis.constant(np.eye(len(axis.x))[len(axis.x) // 2])
'''
CURRICULUM_KEYS = '''class Middle(Form):
    """The middle state alone."""

    made_by: ClassVar[str] = "pipeline.levels.middle:middle"
    kind: Literal["middle"]


Curriculum = (
    Middle
    | '''
NETWORK_KEYS = '''class Wide(UNet):
    """Another network."""

    made_by: ClassVar[str] = "pipeline.networks.wide:wide"
    kind: Literal["wide"]


Network = Wide | '''
TABLE = {
    "add a sampler": (
        edits(
            add("pipeline/sampling/half.py", SAMPLER),
            replace("pipeline/sampling/params.py", "\nSampling = (\n    ", "\n" + SAMPLER_KEYS),
        ),
        set(),
    ),
    "add a schedule": (
        edits(
            add("pipeline/levels/squeezed.py", SCHEDULE),
            replace("pipeline/levels/params.py", "\nSchedule = (\n    ", "\n" + SCHEDULE_KEYS),
        ),
        set(),
    ),
    "add a curriculum": (
        edits(
            add("pipeline/levels/middle.py", CURRICULUM),
            replace("pipeline/levels/params.py", "\nCurriculum = (\n    ", "\n" + CURRICULUM_KEYS),
        ),
        set(),
    ),
    "edit a curriculum that experts use": (
        replace(
            "pipeline/levels/curriculum.py",
            "return axis.constant(axis.uniform)",
            "return axis.constant(axis.uniform**2)",
        ),
        {"expert", "router"},
    ),
    "edit a curriculum that they do not use": (
        replace("pipeline/levels/curriculum.py", "MOST_CLUSTERS = 20", "MOST_CLUSTERS = 10"),
        set(),
    ),
    "edit a policy that they do not use": (
        replace("pipeline/training/adaptive.py", "QUEUE, LEAST = 20", "QUEUE, LEAST = 30"),
        set(),
    ),
    "edit what only flows use": (
        edits(
            replace("pipeline/levels/flow.py", "LAST = 0.999", "LAST = 0.99"),
            replace("pipeline/networks/velocity.py", "given[1].to", "given[-1].to"),
            replace("pipeline/sampling/flow.py", "euler() -> Sample:", "euler(_=1) -> Sample:"),
        ),
        set(),
    ),
    "edit guidance that only some use": (
        replace("pipeline/sampling/guidance.py", "both if low <=", "both if low <"),
        set(),
    ),
    "edit a pairing that they do not use": (
        replace("pipeline/noise/semidiscrete.py", "_STEP, _AVERAGED = 2.0", "_STEP, _AVERAGED = 3"),
        set(),
    ),
    "edit how others' statistics are read": (
        replace("pipeline/evaluation/frechet.py", "rtol=1e-3", "rtol=1e-4"),
        set(),
    ),
    "edit a law that only some images have": (
        edits(
            replace("pipeline/data/sources/synthetic.py", '{"square": 5,', '{"square": 4,'),
            replace("pipeline/evaluation/law.py", "DRAWS = 1_000", "DRAWS = 2_000"),
        ),
        set(),
    ),
    "add a network": (
        edits(
            add("pipeline/networks/wide.py", "from pipeline.networks.unet import unet as wide\n"),
            replace("pipeline/networks/params.py", "\nNetwork = ", "\n" + NETWORK_KEYS),
        ),
        set(),
    ),
    "add a metric": (
        replace(
            "pipeline/evaluation/scores.py",
            '"kid": kernel.mean,',
            '"kid": kernel.mean,\n        "kid_twice": 2 * kernel.mean,',
        ),
        {"scores"},
    ),
    "add a section of the report": (add("stages/new_section.py", "VALUE = 1\n"), set()),
    "add a key whose default changes nothing": (
        replace(
            "pipeline/training/params.py",
            "    threads: Threads = 1",
            "    norm: float = neutral(0.0)\n    threads: Threads = 1",
        ),
        set(),
    ),
    "add a source of images": (
        edits(
            add("pipeline/data/sources/other.py", "def open_other(place, split, limit): ...\n"),
            replace(
                "pipeline/data/params.py",
                '    "npz":',
                '    "other": "pipeline.data.sources.other:open_other",\n    "npz":',
            ),
        ),
        set(),
    ),
    "edit the optimizer": (
        replace("pipeline/training/optim.py", "amsgrad=False", "amsgrad=True"),
        {"expert", "encoder"},
    ),
    "edit the assignment": (
        replace("pipeline/noise/assignment.py", "_EXACT = 1 << 24", "_EXACT = 1 << 23"),
        {"pairing"},
    ),
    "edit how rows are chosen": (
        replace("pipeline/rows.py", '_KEY = philox.derive_key("rows")', "_KEY = 1"),
        KINDS - {"expert", "router", "samples"},
    ),
    "edit a docstring and a comment": (
        edits(
            replace("pipeline/training/train.py", '"""Training of one expert:', '"""One expert:'),
            add("pipeline/noise/assignment.py", "\n# the end\n"),
        ),
        set(),
    ),
    "move a file": (move_the_classifier, set()),
}


def say(root: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", SAY], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def before():
    return say(ROOT)


@pytest.mark.parametrize("name", TABLE)
def test_an_edit_makes_again_what_it_can_change_and_nothing_else(name, before, tmp_path):
    edit, changed = TABLE[name]
    for folder in ("pipeline", "stages"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    edit(tmp_path)
    after = say(tmp_path)
    assert before.keys() == KINDS | {"planned"}
    assert {key for key in KINDS if before[key] != after[key]} == changed
    # Names of experts have the digests of their code and of all that they read.
    read = changed & {"expert", "latents", "features", "pairing"}
    assert (before["planned"] != after["planned"]) == bool(read)
