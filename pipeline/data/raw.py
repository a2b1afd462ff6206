"""Which files of raw image data are read, and in which order; none of them is opened here.

Readers and the fingerprint share this list, so what is read and what is watched cannot differ.
Nothing heavy is imported, since `tspace source` looks at every run.
"""

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.data.params import SOURCES
from pipeline.errors import UserError, shown

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
SPLITS = ("train", "validation", "test")

CIFAR_FILES = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
SIDECAR_NAMES = {"thumbs.db", "desktop.ini", "__macosx"}
SIDECAR_SUFFIXES = {".csv", ".json", ".jsonl", ".md", ".tsv", ".txt", ".xml", ".yaml", ".yml"}

# The last line: further images that are neither trained on nor tested with.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
    "other": ("unlabeled", "unlabelled", "unsupervised", "extra"),
}
_SPLIT_OF = {
    f"{word}{end}": split
    for split, words in _WORDS.items()
    for word in words
    for end in ("", "set", "data", "images", "split")
}
SHARDS = {"parquet": ".parquet", "webdataset": ".tar"}  # how the files of a source end
_SHARD = re.compile(r"(?P<head>.*)-(?P<number>\d{5})-of-(?P<count>\d{5}).*")


def locate(source: str, path: Path | None, split: str) -> Path:
    """The file or folder of a source; `path` is None for its own place, where it has one.

    Raises UserError for an unknown source or split, and for a missing or superfluous path.
    """
    if source not in SOURCES:
        raise UserError(f"data.source: {source!r} is unknown; it is one of {', '.join(SOURCES)}")
    if split not in SPLITS:
        raise UserError(f"data.split: {split!r} is unknown; it is one of {', '.join(SPLITS)}")
    if source == "digits":
        if path is not None:
            raise UserError(
                f"data.path: the digits come with scikit-learn; leave {shown(path)} out"
            )
        # Found without importing scikit-learn, which takes a second.
        package = importlib.util.find_spec("sklearn").submodule_search_locations[0]
        return Path(package) / "datasets" / "data" / "digits.csv.gz"
    if source == "synthetic":
        if path is not None:
            raise UserError(f"data.path: synthetic images are drawn here; leave {shown(path)} out")
        return Path(__file__).with_name("sources") / "synthetic.py"  # what makes them
    hint = f"give the path of the files of source {source!r}"
    if source == "fashion-mnist":
        path = path or FASHION_MNIST
        hint = f"install the Debian package dataset-fashion-mnist, or {hint}"
    if path is None:
        raise UserError(f"data.path: missing; {hint}")
    if not path.exists():
        raise UserError(f"data.path: {shown(path)} does not exist; {hint}")
    return path


def raw_files(source: str, path: Path | None, split: str) -> tuple[Path, Iterable[str]]:
    """The folder that a source's files are in, and their names relative to it, in reading order.

    Raises UserError as `locate` does, and where folders or shards are ambiguous or missing.
    """
    path = locate(source, path, split)
    if source == "folder":
        root, classes = class_folders(path, split)
        return root, (name for folder in classes or [""] for name in walk(root, folder, False))
    if source == "patches":
        return photographs(path, split)
    if source in SHARDS and path.is_dir():
        return path, shards(path, split, SHARDS[source])
    if source == "fashion-mnist":
        return path, [file.name for file in idx_files(path, split)]
    if source == "cifar10" and path.is_dir():
        folder = cifar_folder(path)
        names = [f"{stem}{end}" for stem in CIFAR_FILES.get(split, ()) for end in ("", ".bin")]
        return folder, [name for name in names if (folder / name).exists()]
    return path.parent, [path.name]


def split_of(name: str) -> str | None:
    """The split that a folder is named after (`Training`, `val2017`, `test_set`), or None.

    "other" stands for images of no split, such as `unlabeled`.
    """
    return _SPLIT_OF.get("".join(filter(str.isalpha, name.lower())))


def is_sidecar(name: str) -> bool:
    """Whether a file or folder lies beside images without being one."""
    lower = name.lower()
    return (
        name.startswith(".")
        or lower in SIDECAR_NAMES
        or os.path.splitext(lower)[1] in SIDECAR_SUFFIXES
    )


def entries(folder: Path | str) -> list[tuple[str, bool]]:
    """Names in a folder, sorted, and whether each is a folder; without sidecars."""
    try:
        with os.scandir(folder) as found:
            return sorted((e.name, e.is_dir()) for e in found if not is_sidecar(e.name))
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be read ({error.strerror})") from error


def walk(
    root: Path, below: str = "", splits: bool = True, above: tuple[tuple[int, int], ...] = ()
) -> Iterator[str]:
    """Files below `root`/`below` but sidecars, by name within their folder, relative to `root`.

    splits: whether folders may be named after splits. above: the folders on the way here. Raises
    UserError for a folder that cannot be read, holds itself or has such a name against `splits`.
    """
    folder = os.path.join(root, below)
    found = entries(folder)
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UserError(f"{shown(folder)}: is a link to a folder that holds it; remove the link")
    for name, is_folder in found:
        path = f"{below}/{name}" if below else name
        if is_folder:
            if not splits and split_of(name) in SPLITS:
                raise UserError(
                    f"{shown(folder)}: has {shown(name)}, which is the name of a split, inside of "
                    "a class or split; give the path of the folder to read, or rename it"
                )
            yield from walk(root, path, splits, (*above, here))
        else:
            yield path


# --- image folders ------------------------------------------------------------------------------


def class_folders(path: Path, split: str) -> tuple[Path, list[str]]:
    """The folder that holds the split's images, and its class folders; none where it has none.

    Raises UserError for images beside class folders, and for splits that cannot be told apart.
    """
    root = _split_folder(path, split)
    _refuse_saved(root)
    found = entries(root)
    folders = [name for name, is_folder in found if is_folder]
    if any(split_of(name) in SPLITS for name in folders):
        raise UserError(
            f"{shown(root)}: is a split that is divided into splits; give the path of the folder "
            "to read"
        )
    files = [name for name, is_folder in found if not is_folder]
    if folders and files:
        raise UserError(
            f"{shown(root)}: has the file {shown(files[0])} beside the folder {shown(folders[0])}; "
            "put all images in class folders, or none"
        )
    return root, folders


def photographs(path: Path, split: str) -> tuple[Path, Iterator[str]]:
    """The folder that holds the split's photographs, and their names, at any depth.

    Raises UserError for splits that cannot be told apart.
    """
    root = _split_folder(path, split)
    return root, walk(root, splits=False)


def _split_folder(path: Path, split: str) -> Path:
    """The folder of the split, where the folder holds splits and nothing else."""
    if not path.is_dir():
        raise UserError(f"{shown(path)}: is not a folder; unpack it, or choose another source")
    _refuse_saved(path)
    found = entries(path)
    named = {name: split_of(name) for name, is_folder in found if is_folder and split_of(name)}
    if not named:
        if split != "train":
            raise UserError(
                f"data.split: {shown(path)} is not divided into splits; give the path of the "
                f"images of {split!r} and leave data.split at train"
            )
        return path
    others = [name for name, _ in found if name not in named]
    if others:
        raise UserError(
            f"{shown(path)}: has {shown(next(iter(named)))}, which is the name of a split, beside "
            f"{shown(others[0])}; give the path of the folder to read, or rename a class of such "
            "a name"
        )
    chosen = [name for name, kind in named.items() if kind == split]
    if len(chosen) != 1:
        raise UserError(
            f"data.split: {shown(path)} has {shown(', '.join(named))}, not one {split!r}; give the "
            "path of the folder to read"
        )
    return path / chosen[0]


def _refuse_saved(folder: Path) -> None:
    """UserError for what the library `datasets` writes beside Parquet: Arrow files."""
    described = (folder / "dataset_info.json").exists()
    if (folder / "dataset_dict.json").exists() or (described and any(folder.glob("*.arrow"))):
        raise UserError(
            f"{shown(folder)}: is what `save_to_disk` writes (Arrow files), which no source reads; "
            "write Parquet by `load_from_disk(...).to_parquet(...)`, a file a split, and set "
            "data.source to parquet"
        )


# --- shards -------------------------------------------------------------------------------------


def shards(folder: Path, split: str, suffix: str) -> list[str]:
    """The shards of a split, by their names or their folders' names; all where none is named.

    Raises UserError where a shard is missing, and where they are of several data sets.
    """
    _refuse_saved(folder)
    files = [name for name in walk(folder) if name.endswith(suffix)]
    if not files:
        raise UserError(f"{shown(folder)}: has no {suffix} file; give the folder of the shards")
    by_split: dict[str | None, list[str]] = {}
    for name in files:
        by_split.setdefault(_shard_split(folder, name), []).append(name)
    if by_split.keys() == {None} and split == "train":
        chosen = files
    elif None in by_split and len(by_split) > 1:
        raise UserError(
            f"{shown(folder / by_split[None][0])}: is named after no split, other files are; "
            "give the path of one file, or of a folder of one kind"
        )
    elif split in by_split:
        chosen = by_split[split]
    else:
        found = ", ".join(name or "no named split" for name in by_split)
        raise UserError(f"data.split: {shown(folder)} has no {split!r} ({found})")
    kinds = {_configuration(name): name for name in reversed(chosen)}
    if len(kinds) > 1:
        names = ", ".join(shown(kind or kinds[kind]) for kind in sorted(kinds))
        raise UserError(
            f"{shown(folder)}: holds several data sets (configurations): {names}; give the path "
            "of one of them"
        )
    _check_shards(folder, chosen)
    return chosen


def _words(part: str) -> list[str]:
    return re.split(r"[-_.]", part)


def _shard_split(folder: Path, name: str) -> str | None:
    """The split that a file is named after or, where it is not, the innermost of its folders."""
    for part in reversed(os.path.splitext(name)[0].split("/")):
        named = {split_of(word) for word in _words(part)} - {None}
        if len(named) > 1:
            raise UserError(f"{shown(folder / name)}: is named after several splits; rename it")
        if named:
            return named.pop()
    return None


def _configuration(name: str) -> str:
    """What tells a shard's data set: its folders but those of splits, and what its name starts with
    before the split (`cifar10` in `cifar10-train-00000-of-00001`)."""
    *folders, file = os.path.splitext(name)[0].split("/")
    kept = [part for part in folders if not any(map(split_of, _words(part)))]
    words = _words(file)
    at = next((i for i, word in enumerate(words) if split_of(word)), None)
    if at is None:
        match = _SHARD.fullmatch(file)
        head = match["head"] if match else ""
    else:
        head = "-".join(words[:at])
    return "/".join([*kept, head] if head else kept)


def _check_shards(folder: Path, names: list[str]) -> None:
    """Shards carry their number and count in their names; all must be there."""
    present: dict[tuple[str, int], set[int]] = {}
    for name in names:
        match = _SHARD.fullmatch(name)
        if match:
            present.setdefault((match["head"], int(match["count"])), set()).add(
                int(match["number"])
            )
    for (head, count), numbers in present.items():
        missing = set(range(count)) - numbers
        if missing:
            name = f"{head}-{min(missing):05}-of-{count:05}"
            raise UserError(f"{shown(folder / name)}: the shard is missing; fetch it as well")


# --- others -------------------------------------------------------------------------------------


def idx_files(folder: Path, split: str) -> tuple[Path, Path]:
    """The files of images and of labels of Fashion-MNIST. UserError if one is missing."""
    if split == "validation":
        raise UserError(
            "data.split: fashion-mnist has no split 'validation'; use 'train' or 'test'"
        )
    prefix = {"train": "train", "test": "t10k"}[split]
    return (
        _idx_file(folder, f"{prefix}-images", "idx3-ubyte"),
        _idx_file(folder, f"{prefix}-labels", "idx1-ubyte"),
    )


def _idx_file(folder: Path, stem: str, kind: str) -> Path:
    for name in (f"{stem}-{kind}", f"{stem}.{kind}"):
        for suffix in ("", ".gz"):
            if (folder / f"{name}{suffix}").exists():
                return folder / f"{name}{suffix}"
    raise UserError(f"{shown(folder)}: has no {stem}-{kind} or {stem}-{kind}.gz; put it there")


def cifar_folder(path: Path) -> Path:
    """The folder of CIFAR-10's batches: the given one, or the one that its archive unpacks to."""
    inner = (path / f"cifar-10-batches-{version}" for version in ("bin", "py"))
    return next((folder for folder in inner if folder.is_dir()), path)
