"""How long each stage of dvc.yaml has still to do: by what such jobs took, else as was measured.

What nobody can tell beforehand, such as a download or a search, counts as none, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline import plan
from pipeline.devices import cores
from pipeline.params.recipe import Params
from pipeline.plan.outputs import ERROR_LEVELS
from stages import evaluate, gpus
from stages.consistency import consistency_jobs
from stages.fanout import cores_of, profile_settings
from stages.sample import reconstruction_jobs
from stages.tools.clock import Process, StageTime, makespan
from stages.tools.forecast import Costs, Drawing, History, Measured, drawing_key
from stages.tools.status import done, merged
from stages.tools.work import Works
from stages.workspace import Workspace

# As they stand in dvc.yaml.
STAGES = (
    *("source", "prepare", "encode", "analyse", "features", "pair", "train", "merge", "sample"),
    *("evaluate", "consistency", "report"),
)
OVERHEADS = ("dvc", "stage", "prepare", "jobs", "process", "torch")  # none where not measured
FOLDERS = {  # of artefacts, of the stages with jobs
    **{"encode": "latents", "analyse": "analyses", "features": "features", "pair": "pairings"},
    **{"train": "experts", "sample": "samples", "consistency": "consistency"},
}


class Timetable:
    """What is left of a run of `dvc repro`.

    recipes: planned, all of params.yaml. drawings: their samples. images_left: of experts that are
    begun, by name. evaluations: seconds of each, see `evaluation_seconds`. prepared: whether the
    dataset is, without which no job has its name, and so none is known to be finished.
    """

    def __init__(
        self,
        workspace: Workspace,
        params: Params,
        facts: plan.DatasetFacts,
        recipes: Mapping[str, plan.RecipePlan],
        drawings: Iterable[Drawing],
        images_left: Mapping[str, int],
        evaluations: Mapping[str, float],
        costs: Costs,
        beforehand: Measured,
        prepared: bool,
    ):
        self.workspace, self.params, self.facts = workspace, params, facts
        self.recipes, self.prepared, self.images_left = recipes, prepared, images_left
        self.drawings = {drawing.recipe: drawing for drawing in drawings}
        self.costs, self.rates, self.evaluations = costs, beforehand.rates, evaluations
        self.over = dict.fromkeys(OVERHEADS, 0.0) | dict(beforehand.overheads)
        self.works, self.history = Works(params, facts), History(workspace)
        settings = profile_settings(workspace)
        self.local = settings.get("executor", "local") == "local"
        most = settings.get("cores", "all")
        self.workers = (most if isinstance(most, int) else cores()) if self.local else float("inf")
        self.gpus = len(gpus.listed()) * gpus.sharing() if self.local else 0

    def rows(self) -> list[StageTime]:
        """A row a stage, in their order."""
        found = [self._alone("source", 0.0, more=self.over["dvc"])]
        found.append(self._prepare())
        for stage in STAGES[2:]:
            busy = any(row.jobs for row in found) or not self.prepared
            if stage == "merge":
                found.append(self._alone(stage, self.over["torch"], busy))
            elif stage == "report":
                seconds = self.over.get("report")
                found.append(self._alone(stage, seconds and self.over["torch"] + seconds, busy))
            else:
                found.append(self._with_jobs(stage, getattr(self, f"_{stage}")()))
        return found

    def _alone(
        self, stage: str, seconds: float | None, busy: bool = True, more: float = 0.0
    ) -> StageTime:
        """A stage that does its own work; seconds: None if unknown."""
        if not busy:
            return StageTime(stage, 0, 0.0, 0.0)
        work = seconds or 0.0
        clock = more + self.over["stage"] + work
        return StageTime(stage, 0, work, clock, int(seconds is None))

    def _prepare(self) -> StageTime:
        seconds = self._measured(self.works.prepared())
        own = None if seconds is None else self.over["prepare"] + seconds
        return self._alone("prepare", own, not self.prepared)

    def _with_jobs(self, stage: str, processes: Sequence[Process]) -> StageTime:
        if not processes:
            # Without jobs that are missing, a stage with changed inputs looks at them and ends.
            idle = 0.0 if self.prepared else self.over["stage"]
            return StageTime(stage, 0, 0.0, idle)
        around = self.over["stage"] + self.over["jobs"]
        return StageTime(
            stage=stage,
            jobs=sum(process.jobs for process in processes),
            work=sum(process.seconds or 0.0 for process in processes),
            clock=around + makespan(processes, self.workers, self.gpus),
            unknown=sum(process.jobs for process in processes if process.seconds is None),
        )

    # --- the jobs of each stage

    def _encode(self) -> list[Process]:
        codec = plan.encoder(self.params, self.facts)
        shards = plan.latents(self.params, self.facts) + plan.held_out(self.params, self.facts)
        return self._processes("encode", [*([codec] if codec else []), *shards])

    def _analyse(self) -> list[Process]:
        return self._processes("analyse", plan.analyses(self.params, self.facts))

    def _features(self) -> list[Process]:
        return self._processes("features", [plan.features(self.params, self.facts)])

    def _pair(self) -> list[Process]:
        recipes = self.recipes.values()
        return self._processes("pair", [job for recipe in recipes for job in recipe.pairings])

    def _train(self) -> list[Process]:
        jobs = [expert.job for recipe in self.recipes.values() for expert in recipe.experts]
        jobs += [recipe.router.job for recipe in self.recipes.values() if recipe.router]
        jobs += [job for recipe in self.recipes.values() for job in recipe.merged.values()]
        return self._processes("train", jobs)

    def _sample(self) -> list[Process]:
        """The milestones of a recipe share a process, for each shard of their samples."""
        found, evaluated = [], self.params.evaluate
        shards = -(-evaluated.samples // evaluated.shard)
        for name, drawing in self.drawings.items():
            milestones = -(-drawing.samples_left // evaluated.samples)
            seconds, recipe = drawing.seconds_left, self.recipes[name].recipe
            own = None if seconds is None else self._started(seconds / shards)
            found += [
                Process(
                    name=f"{name} {number}",
                    kind="samples",
                    jobs=milestones,
                    seconds=own,
                    threads=recipe.training.threads,
                    weight=drawing.flops_left,
                )
                for number in range(shards if milestones else 0)
            ]
        decoded = plan.reconstructions(self.params, self.facts)
        return [*found, *(self._processes("sample", [decoded]) if decoded else [])]

    def _evaluate(self) -> list[Process]:
        """The scores of a recipe's milestones share a process, and its errors have one."""
        found = self._errors() if self.facts.held_out else []
        each = self.history.of("scores")
        if each is None:
            each = self._measured(self.works.scored(self.params.evaluate.samples))
        for name, recipe in self.recipes.items():
            left = len(recipe.milestones)
            if self.prepared and merged(self.workspace, name, recipe):
                made = evaluate.score_jobs(
                    self.workspace, self.params, self.facts, {name: recipe}
                ).values()
                left = sum(not done(self.workspace, "scores", job.name) for job in made)
            if left:
                own = None if each is None else self._started(left * each)
                found.append(Process(name, "scores", left, own))
        for job in reconstruction_jobs(self.workspace, self.params, self.facts)[1:]:
            if not done(self.workspace, "scores", job.name):
                own = None if each is None else self._started(each)
                found.append(Process(job.name, "scores", 1, own))
        return found

    def _errors(self) -> list[Process]:
        """Those on held-out images, at the end of each recipe."""
        found = []
        for name, recipe in self.recipes.items():
            if self.prepared and merged(self.workspace, name, recipe):
                [job] = evaluate.error_jobs(
                    self.workspace, self.params, self.facts, {name: recipe}
                ).values()
                if done(self.workspace, "scores", job.name):
                    continue
            levels = ERROR_LEVELS if recipe.continuous else min(ERROR_LEVELS, len(recipe.trained))
            seconds = self.history.of("errors")
            if seconds is None:
                each = self.evaluations.get(drawing_key(recipe, None, False))
                seconds = each and each * levels * self.facts.held_out
            own = None if seconds is None else self._started(seconds)
            found.append(Process(f"{name} errors", "errors", 1, own))
        return found

    def _consistency(self) -> list[Process]:
        """Their time is known once such jobs ran here."""
        block = self.params.evaluate.consistency
        if block is None:
            return []
        names = block.recipes
        if self.prepared and all(
            name in self.recipes and merged(self.workspace, name, self.recipes[name])
            for name in names
        ):
            outputs, pairs = consistency_jobs(self.workspace)
            return self._processes("consistency", [*outputs.values(), *pairs.values()])
        each = {kind: self.history.of(kind) for kind in ("outputs", "consistency")}
        count = len(names) * (len(names) - 1) // 2
        own = each["consistency"] and self._started(count * each["consistency"])
        drawn = each["outputs"] and self._started(each["outputs"])
        found = [Process(name, "outputs", 1, drawn) for name in names]
        return [*found, Process("pairs", "consistency", count, own, needs=tuple(names))]

    # --- seconds

    def _processes(self, stage: str, jobs: Iterable[plan.Job]) -> list[Process]:
        """Those that do the jobs which are missing, as `fanout` puts them together."""
        groups: dict[str, list[plan.Job]] = {}
        of: dict[str, str] = {}
        for name, job in {job.name: job for job in jobs}.items():
            if done(self.workspace, FOLDERS[stage], name):
                continue
            group = f"{job.kind} {job.group or job.name}"
            groups.setdefault(group, []).append(job)
            of[name] = group
        found = []
        for group, members in groups.items():
            times = [self.job(job) for job in members]
            needs = {of[need] for job in members for need in job.needs if need in of} - {group}
            found.append(
                Process(
                    name=group,
                    kind=members[0].kind,
                    jobs=len(members),
                    seconds=None if None in times else self._started(sum(times)),
                    threads=max(cores_of(job) for job in members),
                    needs=tuple(needs),
                    weight=sum(job.weight for job in members),
                )
            )
        return found

    def job(self, job: plan.Job) -> float | None:
        """What is left of a job, without the start of its process; None if unknown."""
        if job.kind in ("expert", "router"):
            each = self.costs.of(job.spec).seconds
            left = self.images_left.get(job.name, job.spec.images)
            return each and each * left
        before = self.history.of(job.kind, job.spec)
        return self._measured(self.works.of(job)) if before is None else before

    def _measured(self, works: Sequence[Any] | None) -> float | None:
        if works is None or any(work.kind not in self.rates for work in works):
            return None
        return sum(self.rates[work.kind].seconds(work.amount) for work in works)

    def _started(self, seconds: float) -> float:
        """With the start of a process."""
        return self.over["process"] + self.over["torch"] + seconds
