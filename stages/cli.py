"""The command line: `tspace <stage>` runs one stage; `tspace --help` lists all."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import pipeline
from pipeline.errors import Damaged, UserError, system_message

# What begins a message about a key: the library knows the key, not the file it stands in.
KEY = re.compile(r"(seed|data|latent|features|evaluate|defaults|recipes)(\.[\w-]+)*: ")

if TYPE_CHECKING:
    from stages.workspace import Workspace


class Commands(click.Group):
    """Turns a user's error into one message and exit status 2, and Ctrl-C into one and 130."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except UserError as e:
            forgotten = _forgotten(e) if isinstance(e, Damaged) else ""
            place = "params.yaml: " if KEY.match(str(e)) else ""
            click.echo(f"tspace: {place}{e}{forgotten}", err=True)
            sys.exit(2)
        except OSError as e:
            message = system_message(e, Path.cwd())
            if message is None:
                raise
            click.echo(f"tspace: {message}", err=True)
            sys.exit(2)
        except KeyboardInterrupt as e:
            told = str(e) or "stopped; what is finished is kept, run the same command again"
            click.echo(f"\ntspace: {told}", err=True)
            sys.exit(130)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the pipeline


def _forgotten(damage: Damaged) -> str:
    """What is said of DVC's cache, whose copy of an artefact is removed if it is damaged, too.

    It would come back otherwise: DVC puts what its cache has in the place of equal results.
    """
    from stages.cache import forget_damaged

    root = Path.cwd()
    if (root / "artefacts") not in damage.path.parents or not forget_damaged(root, damage.path):
        return ""
    return " (so was its copy in DVC's cache, which is removed)"


def stage_named(name: str) -> Callable[[Workspace], object]:
    """The function of a stage of dvc.yaml; its module is imported only now."""
    return getattr(importlib.import_module(f"stages.{name}"), name)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pipeline.__version__, prog_name="tspace")
def main() -> None:
    """Train diffusion models faster, in one pipeline whose every result can be regenerated.

    `dvc repro` runs every stage that a change of params.yaml or the code has made stale. The first
    commands below run one stage each, in pipeline order; the others inspect, export and set up.
    """


def _stage(name: str, text: str) -> None:
    def run() -> None:
        from stages.workspace import Workspace

        stage_named(name)(Workspace.here())

    main.command(name, help=text)(run)


@main.command()
def source() -> None:
    """Check whether the raw images changed (by their fingerprint)."""
    from stages.source import source as look
    from stages.workspace import Workspace

    look(Workspace.here())


_stage("prepare", "Convert the raw images to the dataset's normal form.")
_stage("encode", "Encode the images as inputs of the networks.")
_stage("analyse", "Measure what schedules, partitions and budgets are fitted to.")
_stage("features", "Prepare the feature extractor and the real images' features.")
_stage("pair", "Pair images with noise.")
_stage("train", "Train the experts missing from the store.")
_stage("merge", "Combine each recipe's experts into one model.")


@main.command()
@click.option("--recipe", help="Sample this finished recipe instead of running the stage.")
@click.option("-n", "number", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="FILE.png (a grid), FILE.npz (arr_0: NHWC uint8, arr_1: labels), FILE.parquet, or a "
    "folder.",
)
@click.option("--class", "classes", multiple=True, help="Of this class alone; may be repeated.")
@click.option("--guidance", type=click.FloatRange(0, 1e6), help="In place of the recipe's.")
@click.option("--steps", type=click.IntRange(min=1, max=1000), help="In place of the recipe's.")
@click.option("--sampler", help="In place of the recipe's: ddim, euler, heun ...")
@click.pass_context
def sample(
    context: click.Context,
    recipe: str | None,
    number: int,
    seed: int,
    out: Path | None,
    **other: Any,
) -> None:
    """Draw samples for scoring, or from one recipe to a file.

    Without options this runs the stage; with any, --recipe and --out are needed."""
    from stages.workspace import Workspace

    workspace = Workspace.here()
    sources = map(context.get_parameter_source, context.params)
    if set(sources) == {click.core.ParameterSource.DEFAULT}:
        from stages.sample import sample as stage

        stage(workspace)
        return
    if recipe is None or out is None:
        lacking = [name for name, given in (("--recipe", recipe), ("--out", out)) if given is None]
        raise UserError(
            f"sample: {' and '.join(lacking)} missing; give both to draw from one recipe, or no "
            "option to run the stage"
        )
    from stages.tools.draw import draw_from

    draw_from(workspace, recipe, number, seed, out, **other)


_stage("evaluate", "Score the samples against the real images.")


@main.command()
def consistency() -> None:
    """Compare recipes' outputs on the same noise.

    evaluate.consistency in params.yaml names the recipes."""
    from stages.consistency import consistency as compare
    from stages.workspace import Workspace

    compare(Workspace.here())


@main.command()
@click.option(
    "--if-needed",
    is_flag=True,
    help="Only if report.html or costs.json is missing or of other results.",
)
@click.option("--now", is_flag=True, help="From what exists, to results/now/report.html.")
def report(if_needed: bool, now: bool) -> None:
    """Write metrics, tables, pictures and report.html to results/."""
    from stages.report.fresh import stale
    from stages.workspace import Workspace

    workspace = Workspace.here()
    if now:
        from stages.report.now import report_now

        report_now(workspace)
        return
    if if_needed:
        wrong = stale(workspace)
        if wrong is None:
            return
        click.echo(f"{wrong}; writing the report again")
    from stages.report.write import report as write_report

    write_report(workspace)


@main.command()
@click.option("--recipe", help="Show this recipe only.")
@click.option(
    "--all", "everything", is_flag=True, help="One line per expert, even for those alike."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--gpu", help="Estimate hours and memory on this GPU, such as H100, as well.")
@click.option(
    "--utilization",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the GPU's published peak that is reached.  [default: 0.2, an assumption]",
)
@click.option(
    "--price",
    type=click.FloatRange(min=0),
    help="Dollars for an hour of the GPU, or without --gpu of this machine.",
)
@click.option(
    "--measure",
    is_flag=True,
    help="First measure how fast this machine is at what was not done here before: about a minute.",
)
@click.option("--rows", type=click.IntRange(min=1), help="Of images that are not there yet.")
@click.option("--classes", type=click.IntRange(min=0), help="Of images that are not there yet.")
def plan(
    recipe: str | None,
    everything: bool,
    as_json: bool,
    gpu: str | None,
    utilization: float | None,
    price: float | None,
    measure: bool,
    rows: int | None,
    classes: int | None,
) -> None:
    """Show which experts a run would train, why, and what all stages will cost."""
    from stages.tools.declared import Declared
    from stages.tools.hardware import UTILIZATION, Hardware, gpu_named
    from stages.tools.plan import show_plan
    from stages.workspace import Workspace

    on = None
    if gpu is not None:
        on = Hardware(gpu_named(gpu), UTILIZATION if utilization is None else utilization, price)
        price = None
    elif utilization is not None:
        raise UserError("plan: --utilization is of a GPU; name it by --gpu")
    elif price is not None and recipe is not None:
        raise UserError("plan: --price without --gpu is of all stages; leave out --recipe")
    said = None if rows is None and classes is None else Declared(rows, classes)
    show_plan(Workspace.here(), recipe, everything, as_json, on, said, measure, price)


@main.command()
@click.option("--watch", is_flag=True, help="A full-screen table until all jobs are done.")
@click.option(
    "--every",
    type=click.FloatRange(0.1, 3600),
    default=3.0,
    show_default=True,
    help="Seconds between two looks of --watch.",
)
def status(watch: bool, every: float) -> None:
    """Show which jobs are done, running, failed or waiting.

    This includes runs that another process started."""
    from stages.workspace import Workspace

    if watch:
        from stages.tools.watch import watch as follow

        follow(Workspace.here(), every)
        return
    from stages.tools.status import show_status

    show_status(Workspace.here())


@main.command()
@click.option("--watch", is_flag=True, help="Until every recipe has reached its last milestone.")
@click.option("--beside", is_flag=True, hidden=True)
def film(watch: bool, beside: bool) -> None:
    """Draw samples from the snapshots so far, to results/now/recipes/.

    A long `tspace train` does so by itself."""
    from stages import film as films
    from stages.workspace import Workspace

    if beside:
        films.beside()
    films.film(Workspace.here(), watch)


@main.command()
@click.option("--to", "tool", required=True, help="tensorboard, dvclive, mlflow or wandb.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write to; default: .tspace/track/TOOL.",
)
@click.option("--once", is_flag=True, help="Write what there is and end.")
def track(tool: str, out: Path | None, once: bool) -> None:
    """Write losses, scores, params and samples to another tool.

    It follows the store until all jobs are done, and changes no result."""
    from stages.tools.track import track as follow
    from stages.workspace import Workspace

    follow(Workspace.here(), tool, out, once)


@main.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="[B]", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="FILE.png: samples of equal noise.")
@click.option("-n", "number", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def compare(first: str, second: str | None, out: Path | None, number: int, seed: int) -> None:
    """Show how recipes, or runs, differ: settings, scores, costs, bits.

    A and B are recipes of this run, REV:RECIPE, or REV, a git revision or DVC experiment, which
    stands for the recipe of the same name, or for all of them. Without B, A is compared with this
    run."""
    from stages.tools.compare import compare as show
    from stages.workspace import Workspace

    show(Workspace.here(), first, second, out, number, seed)


@main.command()
@click.option("--rev", default="HEAD", show_default=True, help="The commit to compare with.")
def verify(rev: str) -> None:
    """Check the results here against a commit's dvc.lock."""
    from stages.tools.verify import verify as same
    from stages.workspace import Workspace

    sys.exit(0 if same(Workspace.here(), rev) else 1)


@main.command()
@click.option("--dry-run", is_flag=True, help="List what would be deleted, and delete nothing.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
def gc(dry_run: bool, yes: bool) -> None:
    """Delete store entries that nothing needs any more.

    Entries that the params, dvc.lock, a branch or an experiment needs are kept."""
    from stages.tools.gc import gc as collect
    from stages.workspace import Workspace

    collect(Workspace.here(), dry_run, yes)


@main.command()
@click.option("--recipe", required=True, help="The finished recipe to export.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to create.")
@click.option("--milestone", type=click.IntRange(min=1), help="In images; default: the last.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["folder", "diffusers", "programs", "onnx"]),
    default="folder",
    show_default=True,
    help="A folder that runs by itself, a pipeline of diffusers, or the denoiser as programs of "
    "torch.export or ONNX.",
)
def export(recipe: str, out: Path, milestone: int | None, kind: str) -> None:
    """Write a recipe's model to a self-contained folder.

    The folder needs neither tspace nor the store nor params.yaml."""
    from stages.tools.export import export_recipe
    from stages.workspace import Workspace

    export_recipe(Workspace.here(), recipe, out, milestone, kind)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--plan", "only_plan", is_flag=True, help="Say how much would be trained, and end.")
def sweep(file: Path, only_plan: bool) -> None:
    """Search for the best settings of a recipe, as a YAML file says (docs/sweeps.md).

    What is finished is kept: run the same command again to go on."""
    from stages.tools.sweep import sweep as look
    from stages.workspace import Workspace

    look(Workspace.here(), file, only_plan)


@main.command()
@click.option("--recipe", required=True, help="The finished recipe.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="FILE.md, or a folder, as of `tspace export`; default: print it.",
)
@click.option("--license", "terms", help="As the Hub names it: mit, cc-by-4.0 ...")
@click.option("--milestone", type=click.IntRange(min=1), help="In images; default: the folder's.")
def card(recipe: str, out: Path | None, terms: str | None, milestone: int | None) -> None:
    """Write a model card: data, settings, scores, cost, origin and limits.

    It begins with the metadata that Hugging Face's Hub reads. What an exported folder's README.md
    says is kept above it."""
    from stages.tools.card import write_card
    from stages.workspace import Workspace

    write_card(Workspace.here(), recipe, out, terms, milestone)


@main.command()
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    help="The Snakemake profile to check; default: SNAKEMAKE_PROFILE, else profiles/default.",
)
@click.option("--node", is_flag=True, help="Also submit a one-task job that uses the store.")
def doctor(profile: Path | None, node: bool) -> None:
    """Check the installation, the store and the cluster, if any.

    The cluster is checked with a SLURM profile."""
    from stages.tools.doctor import examine
    from stages.workspace import Workspace

    sys.exit(examine(Workspace.here(), profile, node))


@main.command()
@click.argument("name", required=False)
@click.option("--force", is_flag=True, help="Replace an edited params.yaml (a copy is kept).")
@click.option(
    "--scale",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    help="For a rehearsal: multiply all budgets, samples and steps by this.",
)
@click.option(
    "--width",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    help="For a rehearsal: multiply the networks' widths and blocks by this.",
)
def preset(name: str | None, force: bool, scale: float, width: float) -> None:
    """Write a preset to params.yaml, or list the presets.

    Without NAME, the presets are listed."""
    from stages.tools.preset import names, write_preset
    from stages.workspace import Workspace

    workspace = Workspace.here()
    if name is None:
        click.echo("\n".join(names(workspace)))
    else:
        write_preset(workspace, name, force, scale, width)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Write the files of a new project to FOLDER.

    There `dvc repro` runs with the installed tspace, without a checkout of its code. Files that are
    there are kept."""
    from stages.tools.init import init as write

    write(folder)


@main.command(hidden=True)
@click.option("--root", type=click.Path(path_type=Path), required=True)
@click.option("--store", "store_root", type=click.Path(path_type=Path), required=True)
@click.argument("names", nargs=-1, required=True)
def job(root: Path, store_root: Path, names: tuple[str, ...]) -> None:
    """Run planned entries of the store, one after the other (called by the Snakefile)."""
    from pipeline.store.entry import Store
    from stages import gpus, ranks
    from stages.job import run_job
    from stages.train import follow_rank
    from stages.workspace import Workspace

    workspace, store = Workspace(root), Store(store_root)
    if (address := ranks.address_to_follow(workspace)) is not None:
        follow_rank(address, store, workspace)
        return
    ranks.publish(workspace)
    entries = [store.entry(name) for name in names]
    with gpus.claimed(entries[0].kind, ranks.most_processes(entries)):
        finished = [run_job(workspace, store, name) for name in names]
    if not all(finished):
        sys.exit(1)


@main.command(hidden=True)
@click.argument("root", type=click.Path(path_type=Path))
@click.argument("known", type=click.Path(path_type=Path))
@click.argument("part", type=int)
@click.argument("count", type=int)
@click.argument("out", type=click.Path(path_type=Path))
def rehearse(root: Path, known: Path, part: int, count: int, out: Path) -> None:
    """Measure a part of a plan's work (called by `tspace plan --measure`)."""
    from stages.tools.calibration import rehearse as measure

    measure(root, known, part, count, out)


if __name__ == "__main__":
    main()
