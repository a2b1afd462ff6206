"""The stage `encode`: the encoder, and the shards of latents."""

from __future__ import annotations

from pipeline import plan
from pipeline.errors import UserError
from pipeline.specs import EncoderSpec, LatentsSpec
from pipeline.store.entry import Entry, Store
from pipeline.store.files import replacing
from stages.facts import facts_of, fresh_params
from stages.fanout import fan_out
from stages.inputs import codec_of, dataset_of, device, mapped_images, stopping, training_progress
from stages.reporter import Reporter
from stages.workspace import Workspace


def run_encoder(
    spec: EncoderSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    from pipeline.data.codec import fetch_diffusers, load_codec
    from pipeline.training import autoencoder

    rows, settings = spec.images.rows, spec.settings
    read = mapped_images(dataset_of(workspace, spec.images), rows, entry, reporter.log).__getitem__
    common = {"shape": tuple(spec.shape), "device": device(), "threads": settings.threads}
    if settings.encoder == "diffusers":
        fetch_diffusers(
            _model(workspace, settings.model),
            entry.path,
            read,
            rows,
            log=reporter.log,
            **common,
        )
        codec = load_codec(entry.path)
        promised = (settings.channels, *(n // settings.downsample for n in spec.shape[1:]))
        if codec.shape != promised:
            raise UserError(
                f"latent.model: {settings.model} has latents of shape {codec.shape}, but "
                f"latent.channels and latent.downsample say {promised}"
            )
        return

    with stopping(reporter, entry) as stop:
        autoencoder.train_autoencoder(
            read,
            rows,
            settings=settings,
            seed=spec.seed,
            folder=entry.path,
            progress=training_progress(reporter),
            log=reporter.log,
            stop=stop,
            **common,
        )


def _model(workspace: Workspace, model: str) -> str:
    """A model's folder, relative to the project's, or its name on the hub."""
    return str(workspace.root / model) if (workspace.root / model).is_dir() else model


def run_latents(
    spec: LatentsSpec, entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    from pipeline.data.latents import encoded, write_shard

    images = dataset_of(workspace, spec.images)
    start, stop = spec.first, spec.last
    info = images.info
    codec = None if spec.encoder is None else codec_of(spec.encoder, store)
    mirrored = stop if spec.flips_after is None else spec.flips_after

    def batches():
        done = 0
        for values, labels in encoded(images, start, stop, mirrored, codec, spec.variance):
            yield values, labels
            done += len(values)
            reporter.progress(done, stop - start)

    shape = (info.channels, info.resolution, info.resolution) if codec is None else codec.shape
    shift, scale = (spec.shift, spec.scale) if codec is None else (codec.shift, codec.scale)
    with replacing(entry.path / "latents.arrow") as path:
        write_shard(path, batches(), shape, shift, scale, spec.variance)


def encode(workspace: Workspace) -> None:
    """The images as the networks see them, in shards that map into memory."""
    facts = facts_of(workspace, analysed=False)

    def jobs() -> list[plan.Job]:
        params = fresh_params(workspace)
        codec = plan.encoder(params, facts)
        shards = plan.latents(params, facts) + plan.held_out(params, facts)
        return [codec, *shards] if codec else shards

    fan_out(workspace, "latents", jobs)
