"""What experts will cost: as finished ones did where such a network was trained, else counted."""

from __future__ import annotations

import graphlib
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.identity import canonical_json
from pipeline.store import Entry
from stages.workspace import Workspace

RECENT = 9  # finished experts whose speeds are looked at


@dataclass(frozen=True)
class Finished:
    """A finished expert."""

    spec: dict[str, Any]
    record: dict[str, Any]
    seconds: float | None  # of training an image; None of one that was trained elsewhere
    label: str  # when its recipe was collected last; empty if it is no longer in a plan
    when: float


def finished_experts(workspace: Workspace) -> list[Finished]:
    """All finished experts of the store and of the checked out output, each once."""
    labels = {}
    manifest = workspace.artefacts("experts") / "manifest.json"
    if manifest.exists():
        items = workspace.read_json(manifest)["entries"]
        labels = {item["name"].partition("/")[2]: item["label"] for item in items}
    found: dict[str, Finished] = {}
    for folder in (workspace.store.root / "expert", workspace.artefacts("experts")):
        for path in _folders(folder):
            if path.name in found:
                continue
            try:
                when = os.stat(f"{path.path}/DONE").st_mtime
                spec = json.loads(Path(path.path, "spec.json").read_bytes())
                record = json.loads(Path(path.path, "record.json").read_bytes())
            except (OSError, ValueError):  # unfinished, or a damaged one that nobody asked for
                continue
            spent = Entry(Path(path.path)).circumstances().get("snapshot_seconds")
            seconds = max(spent.values()) / record["images"] if spent else None
            found[path.name] = Finished(spec, record, seconds, labels.get(path.name, ""), when)
    return list(found.values())


def _folders(path: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return []


@dataclass(frozen=True)
class Cost:
    """What one expert's network costs. seconds: of training one image; None if never measured."""

    flops: float  # of training one image: forward and backward
    parameters: int
    seconds: float | None


class Costs:
    """Costs by network: measured where a finished expert has it, else counted, once a network."""

    def __init__(self, finished: Sequence[Finished]):
        self._finished: dict[str, list[Finished]] = {}
        for expert in sorted(finished, key=lambda e: -e.when):
            self._finished.setdefault(_network(expert.spec), []).append(expert)
        self._known: dict[str, Cost] = {}

    def of(self, spec: dict[str, Any]) -> Cost:
        """Cost of an expert's network, at the speed of the latest experts like it."""
        network = _network(spec)
        key = network + canonical_json(_speed(spec))
        if key not in self._known:
            self._known[key] = self._cost(network, spec)
        return self._known[key]

    def _cost(self, network: str, spec: dict[str, Any]) -> Cost:
        alike = self._finished.get(network)
        if not alike:
            return counted_cost(spec)
        record = alike[0].record
        timed = [e for e in alike if e.seconds is not None]
        # The same batch, threads and precision tell more than just the same network.
        same = [e for e in timed if _speed(e.spec) == _speed(spec)] or timed
        # The middle of some: the first one on a machine also waits for the disk.
        seconds = statistics.median(e.seconds for e in same[:RECENT]) if same else None
        return Cost(record["flops"] / record["images"], record["parameters"], seconds)


def _network(spec: dict[str, Any]) -> str:
    keys = ["network", "channels", "resolution", "classes", "conditioning"]
    if spec["network"]["kind"] == "multi-decoder":  # which decoder runs how often
        keys += ["curriculum", "log_snr"]
    return canonical_json({key: spec[key] for key in keys})


def _speed(spec: dict[str, Any]) -> list[Any]:
    return [spec["training"].get(key) for key in ("batch", "threads", "precision")]


def counted_cost(spec: dict[str, Any]) -> Cost:
    """Cost of a network that nobody trained yet: its layers are laid out, without memory."""
    from pipeline.networks.build import count_parameters, network_of
    from pipeline.training import flops_per_image

    parameters = count_parameters(network_of(spec, device="meta"))
    return Cost(3 * flops_per_image(spec), parameters, None)


def critical_seconds(
    seconds: dict[str, float], group: dict[str, str], needs: dict[str, Iterable[str]]
) -> float:
    """The longest chain of processes, each of which runs the jobs of a group in turn.

    What a cluster with room for everything waits for. Needs that are not among the jobs are done.
    """
    cost: dict[str, float] = {}
    before: dict[str, set[str]] = {}
    for name, value in seconds.items():
        own = group[name]
        cost[own] = cost.get(own, 0.0) + value
        after = {group[need] for need in needs[name] if need in group} - {own}
        before.setdefault(own, set()).update(after)
    end: dict[str, float] = {}
    for own in graphlib.TopologicalSorter(before).static_order():
        end[own] = cost[own] + max((end[other] for other in before[own]), default=0.0)
    return max(end.values(), default=0.0)
