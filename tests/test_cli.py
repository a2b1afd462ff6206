"""How the command line tells mistakes in params.yaml: by the file's name and the full key."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from stages import cli

PARAMS = """\
seed: 0
data: {source: digits}
latent: {}
features: {}
evaluate: {}
defaults: {}
recipes: {one: {schedule: {kind: linear, states: 10}, sampling: {steps: 4}}}
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seed: 0", "seed: a", "seed: expected a whole number, found 'a'"),
        ("seed: 0", "\tseed: 0", "line 1: starts with a tab; YAML is indented by spaces only"),
        ("digits", "folder", "data.path: missing; give the path of the files of source 'folder'"),
        (
            "digits}",
            "folder, path: no/where}",
            "data.path: {folder}/no/where does not exist, and",
        ),
        ("digits}", "digits, path: x.csv}", "data.path: the digits come with scikit-learn; leave"),
        ("digits}", "digits, holdout: 1797}", "data.holdout: 1797 of 1797 images leave none"),
    ],
)
def test_every_mistake_is_told_by_file_and_full_key(tmp_path, monkeypatch, old, new, told):
    for needed in ("Snakefile", "dvc.yaml"):
        (tmp_path / needed).touch()
    assert old in PARAMS
    (tmp_path / "params.yaml").write_text(PARAMS.replace(old, new, 1))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.main, ["plan"])
    assert done.exit_code == 2, done.output
    assert done.output.startswith(f"tspace: params.yaml: {told.format(folder=tmp_path)}")
