"""Folders of images out of packages that you have: `photos` of Debian's wallpapers, and `emoji`.

Nothing is downloaded here. Where to get the packages, and what their licences are, is in
docs/datasets.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from pipeline import rows  # noqa: E402
from pipeline.data.sources.pictures import decode  # noqa: E402

# The colour photographs among the wallpapers; the rest is drawn, rendered or grey.
PHOTOS = {
    "plasma-workspace-wallpapers": (
        "usr/share/wallpapers/{}/contents/images/2560x1600.jpg",
        "BytheWater ColorfulCups DarkestHour EveningGlow FallenLeaf Kite OneStandsOut Path "
        "summer_1am",
    ),
    "mate-backgrounds": (
        "usr/share/backgrounds/mate/nature/{}.jpg",
        "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood "
        "YellowFlower",
    ),
    "lomiri-wallpapers-16.04": (
        "usr/share/backgrounds/{}.jpg",
        "Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace "
        "Picture_1A_by_freespace Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi "
        "free_by_Peter_Nerlich friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich "
        "life_by_Aitzol_Berasategi picosdeeuropa_by_Aitzol_Berasategi "
        "seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi",
    ),
    "lomiri-wallpapers-20.04": ("usr/share/backgrounds/{}.jpg", "Kleiber_by_Lukas_Baubkus"),
}
TESTED = 7  # photographs of the split `test`
WIDEST = 1920  # pixels: of about one size, all give about as many squares
IMAGES = Path("img/google/64")


def photos(root: Path, out: Path) -> None:
    """The photographs below `root`, some in `test` and the others in `train`, as PNG."""
    found, packages, missing = [], [], []
    for number, (package, (place, names)) in enumerate(PHOTOS.items()):
        for name in names.split():
            path = root / place.format(name)
            found.append((name, path))
            packages.append(number)
            if not path.is_file():
                missing.append(package)
    if missing:
        said = ", ".join(f"{count} of {name}" for name, count in Counter(missing).items())
        raise SystemExit(
            f"{root}: photographs are missing ({said}); `apt-get install "
            f"{' '.join(dict.fromkeys(missing))}`, or unpack these packages (`apt-get download`, "
            "`dpkg-deb -x FILE FOLDER`) and give --root FOLDER"
        )
    tested = set(rows.spread(TESTED, len(found), np.array(packages)).tolist())
    for number, (name, path) in enumerate(found):
        with path.open("rb") as stream:
            picture = Image.fromarray(decode(stream).squeeze())
        height = round(picture.height * WIDEST / picture.width)
        if picture.width > WIDEST:
            picture = picture.resize((WIDEST, height), Image.Resampling.LANCZOS)
        split = out / ("test" if number in tested else "train")
        split.mkdir(exist_ok=True)
        picture.save(split / f"{name}.png")
    print(f"{len(found) - TESTED} photographs in train, {TESTED} in test")


def emoji(package: Path, out: Path) -> None:
    """The emoji of an npm package emoji-datasource-*, in a folder for each of their groups."""
    table = package / "emoji.json"
    if not table.is_file():
        raise SystemExit(
            f"{package}: has no emoji.json; get the package by `npm install "
            "emoji-datasource-google` and give its folder, node_modules/emoji-datasource-google"
        )
    counts: Counter[str] = Counter()
    for item in json.loads(table.read_text(encoding="utf-8")):
        # Components are parts of others, such as skin tones.
        if not item["has_img_google"] or item["category"] == "Component":
            continue
        group = re.sub(r"\W+", "-", item["category"].lower())
        (out / group).mkdir(exist_ok=True)
        shutil.copyfile(package / IMAGES / item["image"], out / group / item["image"])
        counts[group] += 1
    print(f"{counts.total()} emoji: " + ", ".join(f"{n} of {g}" for g, n in counts.items()))


def whole(make: Callable[[Path, Path], None], source: Path, out: Path) -> None:
    """Let `make` fill a folder, which is at `out` only once it is complete."""
    if out.exists():
        raise SystemExit(f"{out}: exists; remove it, or name another --out")
    fresh = out.with_name(f".{out.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        make(source, fresh)
        fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sets = parser.add_subparsers(dest="set", required=True)
    of_photos = sets.add_parser("photos", help=photos.__doc__)
    of_photos.add_argument("--root", type=Path, default=Path("/"), dest="source")
    of_photos.add_argument("--out", type=Path, default=ROOT / "data" / "photos")
    of_emoji = sets.add_parser("emoji", help=emoji.__doc__)
    of_emoji.add_argument("source", type=Path, help="folder of the package")
    of_emoji.add_argument("--out", type=Path, default=ROOT / "data" / "emoji")
    given = parser.parse_args()
    whole({"photos": photos, "emoji": emoji}[given.set], given.source, given.out)


if __name__ == "__main__":
    main()
