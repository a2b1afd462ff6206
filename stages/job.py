"""Runs one planned entry of the store: reads its inputs, calls `pipeline`, writes its results.

No digest covers this module, so nothing here may choose rows or hold a number that could change a
result (`tests/test_jobs.py` looks).
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback

from pipeline.errors import Transient, UserError, system_message
from pipeline.plan import Job
from pipeline.specs import spec_of
from pipeline.store.circumstances import measured
from pipeline.store.entry import Entry, Store
from pipeline.store.files import Lost, ask, sweep, write_text
from stages.analyse import run_bounds, run_clusters, run_pilot, run_spectrum
from stages.consistency import run_consistency, run_outputs
from stages.encode import run_encoder, run_latents
from stages.evaluate import run_errors, run_scores
from stages.fanout import FINAL
from stages.features import run_features
from stages.inputs import Runner
from stages.pair import run_pairing
from stages.reporter import Reporter
from stages.sample import run_reconstructions, run_samples
from stages.train import run_expert, run_merged, run_router
from stages.workspace import Workspace


def run_job(workspace: Workspace, store: Store, name: str) -> bool:
    """Make the entry `kind/digest` unless it is finished; whether it is finished afterwards.

    A failure leaves one line in the entry's error.txt and the traceback in its log. One that the
    job itself declares final is not tried again before the next run of its stage. Raises SystemExit
    if the entry was taken over by another process, and says nothing in it.
    """
    entry = store.entry(name)
    reporter = Reporter(entry)
    with entry.lease(os.environ.get("SLURM_JOB_ID", ""), reporter.log), _lost_is_the_end():
        if entry.done:
            return True
        if (entry.path / FINAL).exists():
            return False
        try:
            spec = spec_of(entry)
            reporter.log(f"started by process {os.getpid()} on {os.uname().nodename}")
            with measured(entry) as circumstances:
                found = RUNNERS[entry.kind](spec, entry, store, workspace, reporter)
                circumstances.update(found or {})
            entry.finish()
            reporter.log("finished")
            return True
        except UserError as e:
            # A full disk is no fault of the job.
            final = not isinstance(e, Transient) and system_message(e, entry.path) is None
            _fail(entry, reporter, str(e), f"failed: {e}", final)
        except Exception as e:
            text = system_message(e, entry.path) or f"{type(e).__name__}: {e}"
            _fail(entry, reporter, text, traceback.format_exc(), False)
    return False


def run_here(
    workspace: Workspace, stage: str, missing: list[Job], entries: dict[str, Entry]
) -> None:
    """The jobs of a stage in this process, one after the other: to start one each takes seconds.

    UserError for the first that fails.
    """
    left = {job.name: job for job in missing}
    while left:
        for job in [job for job in left.values() if not any(need in left for need in job.needs)]:
            if not run_job(workspace, workspace.store, left.pop(job.name).name):
                why = (entries[job.name].path / "error.txt").read_text()
                raise UserError(f"{stage}: {job.label}: {why.strip()}")


def _fail(entry: Entry, reporter: Reporter, error: str, log: str, final: bool) -> None:
    """Keep why a job failed where its stage looks for it, on a full disk, too."""
    ask(entry.path)  # what went wrong may be that another process took over and cleared up
    # Half-written files are of no use any more, and what they took may be all the room there is.
    for folder in (entry.path, entry.state):
        sweep(folder)
    print(error, file=sys.stderr)
    with contextlib.suppress(OSError):
        write_text(entry.path / "error.txt", f"{error}\n")
        if final:
            write_text(entry.path / FINAL, "")
        reporter.log(log)


@contextlib.contextmanager
def _lost_is_the_end():
    try:
        yield
    except Lost as e:
        print(e, file=sys.stderr)
        raise SystemExit(1) from e


RUNNERS: dict[str, Runner] = {
    "encoder": run_encoder,
    "latents": run_latents,
    "spectrum": run_spectrum,
    "bounds": run_bounds,
    "clusters": run_clusters,
    "pilot": run_pilot,
    "features": run_features,
    "pairing": run_pairing,
    "expert": run_expert,
    "router": run_router,
    "merged": run_merged,
    "samples": run_samples,
    "reconstructions": run_reconstructions,
    "scores": run_scores,
    "errors": run_errors,
    "outputs": run_outputs,
    "consistency": run_consistency,
}
