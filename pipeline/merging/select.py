"""One network of several experts, its weights chosen on images that nothing was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.block import Form
from pipeline.data.latents import Latents
from pipeline.errors import UserError
from pipeline.evaluation import frechet
from pipeline.evaluation.features import Extractor
from pipeline.merging import merge, search
from pipeline.networks.build import network_of, start_from, take
from pipeline.noise import philox, process
from pipeline.rows import spread
from pipeline.sampling import mixture
from pipeline.store.files import keep, kept
from pipeline.training.ema import combine, post_hoc_coefficients

if TYPE_CHECKING:
    from pipeline.specs import DenoiserSpec, MergedSpec

STATES = 6  # noise levels at which a range's loss is measured
BATCH = 256
SNAPSHOT_BOUNDS = (-1.0, 1.0)  # of each earlier snapshot's weight
EVALUATIONS = "evaluations.json"

Weights = Mapping[str, torch.Tensor]


def merge_experts(
    spec: MergedSpec,
    parent: Weights | None,
    experts: Sequence[Weights],
    latents: Latents | None,
    state: Path,
    confirm: Callable[[Weights], float] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda _: None,
    root: Path = Path(),
) -> tuple[Weights, dict[str, Any]]:
    """The merged weights of a job's spec, and how they were found.

    parent: what the experts started from (None for snapshots of one run). latents: held-out rows,
    for a search. state: a folder in which evaluations are kept, so that a killed search goes on.
    confirm: a second measure, such as `SmallSampleFid`, that chooses among the best candidates.
    root: where files that networks name are.
    Raises UserError if the networks do not fit each other.
    """
    settings = spec.settings
    method = settings.method
    if parent is not None:  # with the parts that only the experts' networks have
        network = network_of(spec.model, root=root)
        if spec.initial is None:
            start_from(network, parent)
        elif left := take(network, parent).left:
            raise UserError(
                f"{spec.initial.path}: has nothing for {', '.join(left[:3])}, where experts that "
                "start from it begin apart; only what starts alike can be merged"
            )
        parent = {name: p.detach() for name, p in network.named_parameters()}
    if method == "post-hoc":
        images = [n for n in spec.ends for _ in spec.kept]
        lengths = spec.kept * len(spec.ends)
        weights = post_hoc_coefficients(images, lengths, images[-1], settings.length)
        weights /= weights.sum()  # the fit of few snapshots misses one by about a percent
        return combine(experts, weights), {"weights": weights.tolist()}
    if method == "snapshots" and len(experts) == 1:  # the first milestone has no choice yet
        return experts[0], {"weights": [1.0], "evaluations": 0}
    if method == "snapshots":
        # In differences from the last snapshot the weights need not sum to one.
        *earlier, last = experts
        search = _Search(spec, last, earlier, latents, state, None, progress, log, root)
        found = search.run()
        share = 1 - sum(found["weights"])
        report = found | {"weights": [*found["weights"], share]}
        return merge.combine_snapshots(experts, report["weights"]), report
    report = merge.agreement(parent, experts)
    if isinstance(settings, Form):  # by a function of the weights alone
        return settings.maker(parent, experts, **settings.arguments()), report
    if settings.weights is None:
        report |= _Search(spec, parent, experts, latents, state, confirm, progress, log, root).run()
    else:
        report |= {"weights": settings.weights}
    return merge.task_vector(parent, experts, weights=report["weights"]), report


class _Search:
    """Weights of the task vectors by held-out loss, every measurement kept in a file."""

    def __init__(
        self,
        spec: MergedSpec,
        parent: Weights,
        experts: Sequence[Weights],
        latents: Latents,
        state: Path,
        confirm: Callable[[Weights], float] | None,
        progress: Callable[[int, int], None],
        log: Callable[[str], None],
        root: Path,
    ):
        self.settings, self.key = spec.settings, spec.noise_key
        self.parent, self.experts, self.state = parent, experts, state
        self.candidate_fid, self.progress = confirm, progress
        images = self.settings.images
        self.held_out = HeldOut(spec.model, latents, spec.of, images, self.key, root)
        self.known: dict[str, dict[str, float]] = {"loss": {}, "fid": {}}
        for _, path in kept(state, EVALUATIONS, log):
            self.known = json.loads(path.read_text())
            break
        self.planned = len(search.design_points(len(experts)))

    def run(self) -> dict[str, Any]:
        """The weights with the lowest measure, as a report."""
        reference = self.held_out.losses(self.parent)

        def loss(weights: tuple[float, ...]) -> float:
            def measured(merged: Weights) -> float:
                return search.normalised_loss(self.held_out.losses(merged), reference)

            return self._measure("loss", weights, measured)

        def fid(weights: tuple[float, ...]) -> float:
            return self._measure("fid", weights, self.candidate_fid)

        settings, n = self.settings, len(self.experts)
        bounds = tuple(getattr(settings, "bounds", SNAPSHOT_BOUNDS))
        kind = getattr(settings, "search", "quadratic")
        confirm = None if self.candidate_fid is None else fid
        if kind == "grid":
            found = search.grid_search(loss, n, bounds, confirm, levels=settings.levels)
        elif kind == "random":
            count = settings.evaluations
            found = search.random_search(loss, n, bounds, confirm, count=count, key=self.key)
        else:
            found = search.search(loss, n, bounds, confirm or loss)
        report = {
            "weights": list(found.weights),
            "loss": loss(found.weights),
            "loss_of_average": loss((1 / n,) * n),
            "evaluations": len(self.known["loss"]),
            "search": kind,
        }
        if confirm is not None:
            report["fid"] = [[list(w), value] for w, value in found.confirmations]
        return report

    def _measure(
        self, what: str, weights: tuple[float, ...], measured: Callable[[Weights], float]
    ) -> float:
        known, name = self.known[what], json.dumps(weights)
        if name not in known:
            known[name] = measured(merge.task_vector(self.parent, self.experts, weights=weights))
            count, text = sum(map(len, self.known.values())), json.dumps(self.known)
            keep(self.state, EVALUATIONS, count, lambda path: path.write_text(text))
        done = sum(map(len, self.known.values()))
        self.progress(done, max(self.planned, done))
        return known[name]


class SmallSampleFid:
    """Frechet distance of a few samples of a network to held-out images.

    A number of samples that is too small for a score still orders networks that are drawn from the
    same noise: the bias is nearly the same for all.
    """

    def __init__(
        self,
        spec: MergedSpec,
        images: np.ndarray,
        extractor: Extractor,
        shared: dict[str, Any],
        parts: Callable[[dict[str, Any]], Path],
        folder: Path,
        device: torch.device | str = "cpu",
        root: Path = Path(),
    ):
        """spec: of the merge job. images: the held-out ones, uint8 [N, C, H, W]. shared: `shift`,
        `scale`, `decoder` and `terminal` as in `mixture.describe`. parts finds the files of decoder
        and terminal; a candidate's weights are kept in `folder`."""
        self.model, self.given, self.count = spec.model, spec.confirm, spec.settings.confirm
        self.extractor, self.shared, self.parts = extractor, shared, parts
        self.folder, self.device, self.root = folder, device, root
        self.reference = frechet.moments(extractor.features(images), extractor.digest)

    def __call__(self, weights: Weights) -> float:
        given = self.given
        path = self.folder / "candidate.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(weights), path)
        part = {"entry": "candidate", "file": path.name, "sha256": ""}
        states = [float(v) for v in given.log_snr]
        member = mixture.member(part, self.model, 0, len(states) - 1)
        described = mixture.describe(self.model, states, [member], **self.shared)
        images, _ = mixture.draw(
            mixture.Mixture(
                described,
                lambda part: path if part["entry"] == "candidate" else self.parts(part),
                self.device,
                self.root,
            ),
            given.states,
            range(self.count),
            seed=given.seed,
            class_counts=given.class_counts,
            sampling=given.sampling,
        )
        drawn = frechet.moments(self.extractor.features(images), self.extractor.digest)
        return frechet.frechet_distance(self.reference, drawn, allow_few=True).value


class HeldOut:
    """The training loss of a network in each of several ranges of states, on fixed noisy rows.

    In each range the rows are spread over its states, so an evaluation costs as many answers as
    there are rows and ranges. All networks are asked the same questions.
    """

    def __init__(
        self,
        model: DenoiserSpec,
        latents: Latents,
        ranges: Sequence[Sequence[float]],
        images: int,
        key: int,
        root: Path = Path(),
    ):
        """ranges: log-SNRs of each; images: of the held-out rows, at most."""
        self.prediction = model.prediction
        network = network_of(model, device=latents.device, root=root)
        self.network = network.eval().requires_grad_(False)
        self.rows = rows = self._rows(latents, min(images, len(latents)), key)
        self.z = latents.gather(rows)
        ids = torch.from_numpy(rows).to(latents.device)
        self.eps = philox.normal(key, 0, ids, latents.shape)
        self.labels = None
        if model.classes:
            self.labels = torch.from_numpy(latents.labels[rows]).to(latents.device)
        self.levels = [
            [states[i] for i in _evenly(min(STATES, len(states), len(rows)), len(states))]
            for states in ranges
        ]

    @staticmethod
    def _rows(latents: Latents, count: int, key: int) -> np.ndarray:
        """A fair sample, in an order in which so are every second row, every third ..."""
        chosen = spread(count, len(latents), latents.labels)
        chosen = chosen[philox.permutation(philox.derive_key(key, "rows"), 0, count)]
        if latents.labels is None:
            return chosen
        return chosen[np.argsort(latents.labels[chosen], kind="stable")]

    @torch.no_grad()
    def losses(self, weights: Weights) -> list[float]:
        """Mean squared error of the network's own target in each range."""
        self.network.load_state_dict(dict(weights))
        return [
            float(np.mean([self._loss(v, i, len(levels)) for i, v in enumerate(levels)]))
            for levels in self.levels
        ]

    def _loss(self, level: float, first: int, step: int) -> float:
        """Of every `step`-th row from `first` on."""
        total = 0.0
        given = torch.full((1,), level, device=self.z.device)
        rows = torch.arange(first, len(self.z), step, device=self.z.device)
        for part in rows.split(BATCH):
            z, eps = self.z[part], self.eps[part]
            x = process.add_noise(z, eps, level)
            own = None if self.labels is None else self.labels[part]
            output = self.network(x, given, own)
            wanted = process.target(self.prediction, z, eps, level)
            total += float(process.squared_error(output, wanted).sum())
        return total / len(rows)


def _evenly(count: int, states: int) -> np.ndarray:
    """`count` of a range's `states`, evenly spread: int64 [count], ascending."""
    return np.arange(count, dtype=np.int64) * states // count
