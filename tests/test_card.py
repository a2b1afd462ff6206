"""`tspace card` of a really finished recipe, and CITATION.cff."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

import pipeline
from pipeline.errors import UserError
from pipeline.params.document import read
from pipeline.params.load import resolve
from stages.tools.card import BEGIN, alone, write_card
from stages.tools.export import export_recipe
from stages.workspace import Workspace
from tests.workflow import ROOT, run_stages

PARAMS = """\
seed: 0
data: {source: digits, limit: 200}
latent: {encoder: pixels}
features: {extractor: classifier, images: 4000, dimension: 16, channels: 16}
evaluate: {samples: 32, batch: 16}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1], blocks: 1}
  schedule: {kind: log-snr, states: 3}
  training: {images: 64, batch: 16, milestones: [32]}
recipes:
  plain: {}
  child: {training: {parent: plain}}
  other: {training: {learning_rate: 0.004}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("card") / "tspace"
    root.mkdir()
    (root / "params.yaml").write_text(PARAMS)
    (root / ".gitignore").write_text("artefacts\nresults\nstore\n.tspace\n")
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for command in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "x")):
        subprocess.run(["git", *command], cwd=root, check=True)
    workspace = Workspace(root)
    run_stages(workspace)
    return workspace


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)


def parts(text):
    """The metadata and the rest of a card."""
    _, block, rest = text.split("---\n", 2)
    return yaml.safe_load(block), rest


def scores_of(workspace, recipe):
    return workspace.read_json(workspace.results / "recipes" / recipe / "metrics.json")


def test_what_the_hub_reads(finished, tmp_path):
    write_card(finished, "plain", tmp_path / "card.md", "mit", None)
    about, text = parts((tmp_path / "card.md").read_text())
    assert about["license"] == "mit" and about["library_name"] == "tspace"
    assert about["datasets"] == ["digits"] and "diffusion" in about["tags"]
    (result,) = about["model-index"][0]["results"]
    assert about["model-index"][0]["name"] == "plain" and result["dataset"]["type"] == "digits"
    found = {metric["type"]: metric for metric in result["metrics"]}
    known = scores_of(finished, "plain")
    # Features of a classifier of digits give no FID.
    assert "fid" not in found and found["frechet-distance"]["value"] == known["fid"]
    named = found["frechet-distance"]["name"]
    assert named == "Frechet distance on features of classifier, 32 samples"
    assert found["precision"]["value"] == known["precision"]
    assert set(about["metrics"]) == set(found)
    assert "# plain\n" in text and "not the FID of publications" in text

    hub = pytest.importorskip("huggingface_hub")
    loaded = hub.ModelCard.load(tmp_path / "card.md")
    assert loaded.data.license == "mit" and loaded.data.model_name == "plain"
    assert {r.metric_type: r.metric_value for r in loaded.data.eval_results} == {
        kind: metric["value"] for kind, metric in found.items()
    }


def test_a_license_is_left_to_its_author(finished, capsys):
    write_card(finished, "plain", None, None, None)
    text = capsys.readouterr().out
    about, _ = parts(text)
    assert "license" not in about and "# license: yours to choose" in text


def test_what_it_says_is_so(finished, capsys):
    write_card(finished, "child", None, None, None)
    text = capsys.readouterr().out
    known, written = scores_of(finished, "child"), re.search(r"```yaml\n(.*?)```", text, re.S)[1]
    assert f"{known['images_seen']:,} images seen" in text  # its parent's, too
    assert f"{known['parameters']:,} parameters" in text and "200 images of 8x8" in text
    assert "32 samples against 200 real images, on the 16 features of `classifier`" in text
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        cwd=finished.root,
        capture_output=True,
        text=True,
    ).stdout.strip()
    mixture = finished.read_json(finished.artefacts("mixtures") / "child.json")["milestones"][-1]
    assert f"| commit | `{commit}` |" in text and mixture["mixture"]["digest"] in text
    # Its settings, with its parent's, are a params.yaml that plans the same recipe.
    again = resolve(read(written.encode()))
    assert list(again.recipes) == ["plain", "child"]
    assert again.recipes["child"] == finished.params.recipes["child"]
    assert again.evaluate == finished.params.evaluate


def test_a_private_path_is_not_given_away(finished):
    data = finished.params.data.model_copy(update={"source": "folder", "path": "/home/a/flowers"})
    params = finished.params.model_copy(update={"data": data})
    assert alone(params, "plain")["data"]["path"] == "flowers"


@pytest.mark.parametrize("milestone", [None, 32])
def test_an_exported_folder_keeps_its_words(finished, tmp_path, milestone):
    folder = tmp_path / "model"
    export_recipe(finished, "plain", folder, milestone)
    before = (folder / "README.md").read_text()
    for terms in ("mit", "cc-by-4.0"):  # written again in the place of the first
        write_card(finished, "plain", folder, terms, None)
        text = (folder / "README.md").read_text()
        about, rest = parts(text)
        assert about["license"] == terms and rest.count(BEGIN) == rest.count("## Scores") == 1
        assert rest.partition(BEGIN)[0].strip() == before.strip()
    at = scores_of(finished, "plain")["milestones"][str(milestone or 64)]
    assert about["model-index"][0]["results"][0]["metrics"][0]["value"] == at["fid"]


def test_a_folder_of_diffusers_is_named_as_such(finished, tmp_path):
    (tmp_path / "README.md").write_text("# plain, for diffusers\n\n    words\n")
    (tmp_path / "model_index.json").write_text("{}")
    write_card(finished, "plain", tmp_path, None, None)
    about, text = parts((tmp_path / "README.md").read_text())
    assert about["library_name"] == "diffusers" and "    words\n" in text.partition(BEGIN)[0]


def test_what_is_not_this_model_is_refused(finished, tmp_path):
    folder = tmp_path / "model"
    export_recipe(finished, "plain", folder)
    with pytest.raises(UserError, match="of other weights than other at 64 has now"):
        write_card(finished, "other", folder, None, None)
    with pytest.raises(UserError, match="of other weights than plain at 32"):
        write_card(finished, "plain", folder, None, 32)
    (tmp_path / "notes.md").write_text("# Notes\n")
    with pytest.raises(UserError, match=r"notes\.md is of something else than plain"):
        write_card(finished, "plain", tmp_path / "notes.md", None, None)
    with pytest.raises(UserError, match="plain has no such milestone; one of: 32, 64"):
        write_card(finished, "plain", None, None, 5)
    with pytest.raises(UserError, match="no such recipe; did you mean `plain`"):
        write_card(finished, "plan", None, None, None)
    changed = Workspace(tmp_path / "changed")
    changed.root.mkdir()
    (changed.root / "params.yaml").write_text(PARAMS.replace("batch: 16, m", "batch: 8, m"))
    for name in ("artefacts", "store"):
        (changed.root / name).symlink_to(finished.root / name)
    with pytest.raises(UserError, match="card plain: not trained yet, or params"):
        write_card(changed, "plain", None, None, None)


def test_the_citation_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    required = {"cff-version", "message", "title", "authors", "version", "license", "references"}
    assert required <= citation.keys()
    assert citation["cff-version"] == "1.2.0" and citation["title"] == "tspace"
    assert citation["authors"] == [{"name": "The tspace authors"}]
    assert citation["version"] == pipeline.__version__
    project = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{citation["version"]}"\n' in project
    assert f'\nlicense = "{citation["license"]}"\n' in project
    for paper in citation["references"]:
        assert {"type", "title", "authors", "year"} <= paper.keys(), paper["title"]
        assert all({"family-names", "given-names"} <= author.keys() for author in paper["authors"])
    named = {entry.get("value") for p in citation["references"] for entry in p["identifiers"]}
    assert {"arXiv:2312.09181", "arXiv:2410.06664"} <= named
