"""The report page: complete, self-contained, escaped; the same bytes for the same results."""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
from pathlib import Path

import pytest
from markupsafe import escape
from PIL import Image

from pipeline import plan
from pipeline.errors import UserError
from pipeline.store.identity import digest
from stages import numbers
from stages.report import figures
from stages.report import page as page_module
from stages.report.charts import Scale
from stages.report.page import write_figures
from stages.report.sections import cost, scores, states, training
from tests.pages import CPU, DEFAULT, HEAD, check_self_contained, project, results_of, written


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    arguments = project(tmp_path_factory.mktemp("default"))
    return arguments, written(arguments)


def test_the_page_is_self_contained_and_small(default):
    _, page = default
    check_self_contained(page)
    assert len(page.source.encode()) < 600_000


def test_equal_results_give_equal_bytes(default, tmp_path):
    """Of the page, and of the files of its figures: one drawing, and several as panels."""
    (_, page), other = default, project(tmp_path / "elsewhere")
    assert written(other).source == page.source
    section = training.section(results_of(other))
    assert list(section.figures) == ["figures/losses", "costs/timeline"]
    for folder in ("one", "two"):
        write_figures(tmp_path / folder, [section])
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")]
    assert {path.suffix for path in files} == {".svg", ".pdf"} and len(files) == 4
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_the_table_has_every_score_and_both_costs(default):
    (_, _, _, _, metrics, _, _), page = default
    head, *rows = page.tables[0]
    assert [cell.rstrip("\u00a0↓↑") for cell in head] == [
        *("recipe", "FID", "KID ×10³", "precision", "recall", "coverage", "images", "experts"),
        *("parameters active / total", "training FLOPs", "CPU-seconds", "seconds critical path"),
    ]
    cells = {row[0].strip(): [c.removesuffix(" (best)") for c in row[1:]] for row in rows}
    assert list(cells) == list(metrics)
    assert cells["ddpm"][:7] == ["0.310", "1.03", "0.700", "0.612", "0.830", "6,000", "1"]
    twelve = metrics["disentangled_12"]
    total, critical = twelve["cpu_seconds"], twelve["seconds_critical"]
    assert total == pytest.approx(CPU * twelve["seconds"])
    assert cells["disentangled_12"][6:9] == ["12", "60.1\u202fk / 721\u202fk", "9.00\u202fG"]
    assert cells["disentangled_12"][9:] == [f"{total:.1f}", f"{critical:.1f}"]
    assert cells["few-state"][10] == f"{metrics['few-state']['seconds_critical']:.1f}"


def test_the_best_of_each_column_is_marked_in_words_too(default):
    _, page = default
    best = {
        (row[0].strip(), head.rstrip("\u00a0↓↑"))
        for row in page.tables[0][1:]
        for head, cell in zip(page.tables[0][0], row, strict=True)
        if cell.endswith("(best)")
    }
    assert {("ddpm", "FID"), ("ddpm", "coverage"), ("disentangled_12", "precision")} <= best
    assert ("disentangled_12", "seconds critical path") in best
    assert not any(column in ("recall", "images", "experts") for _, column in best)  # all equal


def test_a_distance_to_statistics_of_others_says_what_is_compared(tmp_path):
    told = {"file": "stats.npz", "compared": "these samples against those of others"}
    page = written(
        project(
            tmp_path, scores=lambda number, share: {"fid_published": 7 + number, "published": told}
        )
    )
    head, *rows = page.tables[0]
    place = [cell.rstrip("\u00a0↓↑") for cell in head].index("FID to published")
    assert [row[place].removesuffix(" (best)") for row in rows][:2] == ["7.00", "8.00"]
    assert "FID to published (stats.npz) compares these samples against those of" in page.text


def test_scores_against_a_law_have_columns_and_their_floors(tmp_path):
    names = ("shape", "colour", "position", "size", "shape_colour", "all")

    def law(number, share):
        floor = {name: {"mean": 0.01 + number / 100, "high": 0.05} for name in names}
        found = {f"tv_{name}": 0.02 * (number + 1) for name in names} | {"off_law": 3.25}
        return found | {"law": {"floor": floor, "level": 0.95}}

    page = written(project(tmp_path, scores=law))
    head, *rows = page.tables[0]
    titles = [cell.rstrip("\u00a0↓↑") for cell in head]
    shown = [f"TV {name}" for name in (*names[:4], "shape + colour", "all")]
    assert titles[6:13] == [*shown, "off the law"] and "as asked" not in titles
    assert rows[0][titles.index("TV all")].removesuffix(" (best)") == "0.0200"
    text = " ".join(page.text.split())
    assert "of the samples of ddpm, score on average (and in 95 % of cases up to) TV shape 0.0" in (
        text
    )


def test_the_opening_names_the_dataset_and_the_floor(default):
    (_, _, facts, *_), page = default
    for words in ("1,797 images of 8 × 8 pixels", "10 classes", facts.digest[:16], "500 samples"):
        assert words in page.text
    assert "The floor is FID 0.0617" in page.text
    assert "898 of them against the other 899, which score 0.123" in page.text


def test_every_number_is_traceable_to_its_entry(default):
    (_, workspace, facts, recipes, *_), page = default
    for recipe in recipes.values():
        for expert in recipe.experts:
            assert expert.job.name in page.text
    reference = plan.features(workspace.params, facts)
    assert reference.name in page.text
    mixture = {"digest": digest(["ddpm", 3000]), "experts": []}
    mixture["experts"] = [{"entry": recipes["ddpm"].experts[0].job.name}]
    shards = plan.samples(workspace.params, facts, recipes["ddpm"], mixture, "")
    assert len(shards) == 2 and all(job.name in page.text for job in shards)
    assert plan.scores(workspace.params, facts, shards, reference, "").name in page.text
    assert (workspace.root / "params.yaml").read_text().rstrip() in page.preformatted


def test_each_recipe_shows_its_samples_and_its_own_words(default):
    (*_, pictures), page = default
    images = page.all("img")
    assert [i["width"] for i in images] == ["64"] * 3
    for image, path in zip(images, pictures.values(), strict=True):
        assert base64.b64decode(image["src"].partition(",")[2]) == path.read_bytes()
    assert page.preformatted[0] == "schedule: {kind: linear, states: 1000}\nsampling: {steps: 50}"


def test_charts_name_every_recipe_and_place_lower_scores_lower(default):
    _, page = default
    for name in ("ddpm", "few-state", "disentangled_12"):
        assert page.drawn.count(name) >= 6  # two widths of: FID over images, over seconds (2)
    marks = re.findall(
        r'<title>ddpm: FID (\S+) at [^<]*</title>.*?<use href="[^"]*" x="[^"]*" y="([\d.]+)"',
        page.source,
        re.S,
    )
    first_chart = [(float(y), float(fid)) for fid, y in marks[:3]]
    assert [fid for _, fid in first_chart] == [1.24, 0.62, 0.31]
    (a, b, c) = (y for y, _ in first_chart)
    assert a < b < c and abs((b - a) - (c - b)) < 0.2  # halves lie equally far apart: a log axis


def test_figures_follow_the_colours_of_the_page(default):
    """No colour of the light page is left in one, so the dark page's replace them all."""
    results, page = results_of(default[0]), default[1]
    drawn = "".join(re.findall(r'<svg [^>]*class="figure">.*?</svg>', page.source, re.S))
    assert "var(--p0)" in drawn and "var(--ink)" in drawn and "var(--rule)" in drawn
    assert not re.findall(r"#[0-9a-f]{6}", re.sub(r'href="#[^"]*"|url\(#[^)]*\)', "", drawn))
    dark = (Path(page_module.__file__).parent / "style.css").read_text().partition("dark)")[2]
    assert all(f"--{name}: " in dark for name in figures.LIGHT)
    (chart,) = cost.section(results).figures["figures/fid-over-images"]
    assert {line.colour for line in chart.lines} == {"p0", "p1", "p2"}


def test_the_timeline_is_to_scale(default):
    (_, _, _, _, metrics, _, _), page = default
    timeline = figure_of(page, "Seconds of training")
    bars = re.findall(r"<g><title>state \d+: ([\d.]+) s</title>(.*?)</g>", timeline, re.S)
    assert len(bars) == 24  # twelve experts, in a row and at the same time
    widths = [(float(told), extent(path)) for told, path in bars]
    scale = [width / told for told, width in widths]
    assert max(scale) == pytest.approx(min(scale), rel=0.02)
    total, critical = sum(w for _, w in widths[:12]), max(w for _, w in widths[12:])
    found = metrics["disentangled_12"]
    share = found["seconds_critical"] / found["seconds"]
    assert critical / total == pytest.approx(share, rel=0.01)


def figure_of(page, alt: str) -> str:
    """The first drawing of those whose words begin so."""
    return re.search(rf'<svg [^>]*aria-label="{alt}.*?</svg>', page.source, re.S)[0]


def extent(path: str) -> float:
    """How wide a path is."""
    places = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", path)]
    return max(places) - min(places)


@pytest.mark.parametrize("extractor", ["<script>alert('x')</script>", '"&amp;" <b>'])
def test_text_is_escaped(tmp_path, extractor):
    params = DEFAULT.replace("data: {source: digits}", f"data: {{source: digits}} # {extractor}")
    page = written(project(tmp_path, params, extractor=extractor))
    check_self_contained(page)
    assert page.text.count(extractor) == 2  # the opening, what was run
    assert any(extractor in text for text in page.preformatted)
    assert str(escape(extractor)) in page.source


def test_one_recipe_without_labels_marks_nothing_as_best(tmp_path):
    page = written(project(tmp_path, f"{HEAD}  only: {{}}\n", classes=0))
    check_self_contained(page)
    assert "no labels" in page.text and "(best)" not in page.text
    assert "The defaults, unchanged." in page.text


def test_many_recipes_with_long_names(tmp_path):
    names = [f"recipe-{'x' * 20}_{i:02}-of-many" for i in range(26)]
    params = HEAD + "".join(
        f"  {name}: {{partition: {{kind: uniform, intervals: {i % 3 + 1}}}}}\n"
        for i, name in enumerate(names)
    )
    results = results_of(project(tmp_path, params))
    table = scores.section(results).data["table"]
    assert [line[0].name for line in table.lines] == names
    assert len({(style.colour, style.shape) for style in results.styles.values()}) == 26
    drawn = cost.section(results)
    assert (drawn.data["drawn"], drawn.data["recipes"]) == (24, 26)
    (chart,) = drawn.figures["figures/fid-over-images"]
    for width in (figures.WIDE, figures.NARROW):
        svg = figures.inline(chart, width, "f")
        labels = re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>recipe', svg)
        places = sorted(map(float, labels))
        assert len(places) == 24
        assert all(b - a >= 15.5 for a, b in itertools.pairwise(places)), width
    assert "<title>recipe-xxxxxxxxxxxxxxxxxxxx_00-of-many</title>" in svg  # of a shortened one


def test_many_experts_are_limited_and_said_so(tmp_path):
    params = HEAD + (
        "  pairs:\n    schedule: {kind: log-snr, states: 260}\n"
        "    partition: {kind: uniform, intervals: 130}\n"
    )
    page = written(project(tmp_path, params))
    check_self_contained(page)
    assert len(page.source) < 350_000
    assert "Of more than 24 experts the 24 slowest are drawn." in page.text
    assert "Of more than 32 experts 32 are drawn." in page.text
    assert "Of more than 250 states, 250 are drawn." in page.text
    assert "Of more than 125 experts no bands are drawn." in page.text
    assert "The first 100 of 130 experts" in page.text
    assert len(re.findall(r"<title>states \d+–\d+</title>", figure_of(page, "Loss of"))) == 32
    assert "Of more than 125 intervals no bands are drawn." in page.text
    assert [len(t) for t in page.tables[1:]] == [4, 2, 101, 4]


@pytest.mark.parametrize(
    "values",
    [
        {"fid": 0.0, "kid": -0.00012},
        {"fid": -1e-9, "kid": 0.0},
        {"fid": 1e300, "kid": 1e-300},
        {"fid": 7.5, "kid": 7.5, "precision": 0.0, "recall": 0.0, "coverage": 0.0},
        {"compute_seconds": 0.0, "seconds_critical": 0.0, "train_flops": 0.0},
        {"compute_seconds": 1e9, "seconds_critical": 3e-7, "train_flops": 6.1e26},
    ],
)
def test_extreme_values(tmp_path, values):
    page = written(project(tmp_path, scores=lambda number, share: values if number == 1 else {}))
    check_self_contained(page)
    shown = page.tables[0][2]
    assert shown[0].strip() == "few-state" and "nan" not in " ".join(shown)
    if values.get("fid") == 0.0:
        assert shown[1] == "0.000 (best)" and shown[2] == "−0.120 (best)"
        assert "Values of zero or less lie on the lower edge." in page.text
    if values.get("fid") == -1e-9:
        assert shown[1] == "−10⁻⁹ (best)"
    if values.get("train_flops") == 6.1e26:
        assert shown[9:] == ["610\u202fY", "10⁹", "3×10⁻⁷ (best)"]


@pytest.mark.parametrize("fid", [0.0, -3.0])
def test_no_positive_score_at_all(tmp_path, fid):
    page = written(project(tmp_path, scores=lambda number, share: {"fid": fid}))
    check_self_contained(page)


def test_scores_that_are_missing_are_dashes(tmp_path):
    arguments = project(tmp_path)
    for found in arguments[4].values():
        del found["coverage"]
    page = written(arguments)
    assert [row[5] for row in page.tables[0][1:]] == ["–", "–", "–"]


def test_continuous_schedules(tmp_path):
    params = f"{HEAD}  edm:\n    schedule: {{kind: edm}}\n    sampling: {{kind: heun, steps: 18}}\n"
    page = written(arguments := project(tmp_path, params))
    check_self_contained(page)
    assert "Continuous states, 1 expert, sampled by heun in 18 steps." in page.text
    (strip,) = states.section(results_of(arguments)).data["drawing"].strips
    assert len(strip.visited) == 18 and strip.states == []


def test_large_pictures_are_embedded_reduced(tmp_path):
    arguments = project(tmp_path, f"{HEAD}  only: {{}}\n", side=1500)
    page = written(arguments)
    (image,) = page.all("img")
    assert image["src"].startswith("data:image/jpeg;") and image["width"] == "1200"
    with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as picture:
        assert picture.size == (1200, 1200)
    assert "samples.png" in page.text


def test_a_damaged_record_is_a_user_error(tmp_path):
    arguments = project(tmp_path)
    recipe = arguments[3]["ddpm"]
    entry = arguments[1].store.entry(recipe.experts[0].job.name)
    (entry.path / "curve.json").write_text("[]")
    with pytest.raises(UserError, match=r"curve\.json: damaged"):
        written(arguments)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.6, "1.00 k"),
        (60123, "60.1 k"),
        (1.456e12, "1.46 T"),
        (0.00123, "1.23 m"),
        (-2.5e-7, "−250 n"),
        (6.1e26, "610 Y"),
        (3e200, "3×10²⁰⁰"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_numbers_with_prefixes(value, text):
    assert numbers.si(value).replace("\u202f", " ") == text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([12.34, 0.0567], ["12.340", "0.057"]),
        ([12345.6, 3.2], ["12,345.60", "3.20"]),
        ([0.5, None, -0.25], ["0.500", "–", "−0.250"]),
        ([1.0, 1e-9, 0.0], ["1.000", "10⁻⁹", "0.000"]),
        ([0, 0], ["0.000", "0.000"]),
        ([1.69e-5, -3e-7, 0.0], ["1.69×10⁻⁵", "−3.00×10⁻⁷", "0"]),
    ],
)
def test_columns_of_numbers_align(values, texts):
    assert numbers.fixed(values) == texts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-7.5, "−7.5"),
        (2500, "2500"),
        (102500, "102.5 k"),
        (2e5, "200 k"),
        (2e-7, "2×10⁻⁷"),
    ],
)
def test_numbers_on_an_axis(value, text):
    assert numbers.short(value, 6).replace("\u202f", " ") == text


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "ends", [(0.31, 2.6), (1e-12, 1e15), (5, 5), (99.0, 101.0), (1e-300, 1e300)]
)
def test_ticks_are_few_round_and_inside(ends, log):
    scale = Scale.over(ends, log=log)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 8 and ticks == sorted(set(ticks))
    for tick in ticks:
        assert float(f"{tick:.3e}") == pytest.approx(tick, rel=1e-9)
        assert scale.low <= tick <= scale.high
    assert all(scale.low <= v <= scale.high for v in ends)
