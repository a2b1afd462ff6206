"""Pictures from bytes, and what bytes are that are none."""

import codecs
import warnings
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pipeline.errors import one_line

# Pillow warns of odd metadata beside sound pixels; bombs are refused below. This is said once for
# the process, as several threads decode.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_PIXELS = 2**26
HEAD_BYTES = 4096

_CONVERT = "convert it to PNG or JPEG"
_UNPACK = "unpack it"
# By what a file starts with: what it is, and the way out. Of containers that sources read:
_CONTAINERS = {
    b"PAR1": ("a Parquet file", "set data.source to parquet"),
    b"PK\3\4": ("a ZIP archive or an office document", _UNPACK),
    b"\x1f\x8b": ("packed by gzip", _UNPACK),
}
# And of what no source reads:
_FOREIGN = {
    b"version https://git-lfs.github.com/spec/": (
        "a Git LFS pointer and not the file itself",
        "fetch the file by `git lfs pull`",
    ),
    b"ARROW1": ("an Arrow file", "write its images as Parquet files"),
    b"\x93NUMPY": ("a NumPy array", "save it by np.savez(path, images=...) for source 'npz'"),
    b"BZh": ("packed by bzip2", _UNPACK),
    b"\xfd7zXZ\0": ("packed by xz", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"%PDF": ("PDF, a document", "save its pictures as files of their own"),
    b"\xff\x0a": ("JPEG XL, which Pillow cannot read", _CONVERT),
    b"\0\0\0\x0cJXL ": ("JPEG XL, which Pillow cannot read", _CONVERT),
    b"\x1aE\xdf\xa3": ("a video", "save the frames wanted as files of their own"),
    b"\x89HDF": ("an HDF5 file", "save its images as .npz or PNG"),
}
# By the brand of a file in ISO's base media format.
_BRANDS = {
    b"hei": ("HEIC, which Pillow cannot read", _CONVERT),
    b"hev": ("HEIC, which Pillow cannot read", _CONVERT),
    b"mif": ("HEIF, which Pillow cannot read", _CONVERT),
    b"msf": ("HEIF, which Pillow cannot read", _CONVERT),
    b"avi": ("AVIF, which this Pillow cannot read, or is damaged", _CONVERT),
    b"crx": ("a camera's raw format", _CONVERT),
}
_WEB_PAGE = ("a web page", "fetch the file itself")
_VIDEO = ("a video", "save the frames wanted as files of their own")


class Unusable(Exception):
    """Why a picture or a container cannot be used, without its name."""


def foreign_kind(head: bytes) -> tuple[str, str] | None:
    """What a file is that starts with `head`, in words, and what to do about it; None if unknown.

    For files that their reader refused: a sound picture is never asked about.
    """
    for start, kind in (_CONTAINERS | _FOREIGN).items():
        if head.startswith(start):
            return kind
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:11], _VIDEO)
    for mark, name in (
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
        (b"", "utf-8-sig"),
    ):
        if head.startswith(mark):
            text = _text(head, name)
            if text is not None:
                return _kind_of_text(text, name)
    return None


def foreign_container(head: bytes) -> tuple[str, str] | None:
    """The same for files that should be containers of images; archives may be damaged ones."""
    kind = next((kind for start, kind in _FOREIGN.items() if head.startswith(start)), None)
    return kind or (_WEB_PAGE if _is_web_page(head.decode("latin1")) else None)


def _is_web_page(text: str) -> bool:
    return text.lstrip("\ufeff \t\r\n").lower().startswith(("<!doctype html", "<html"))


def _text(head: bytes, encoding: str) -> str | None:
    """The text that bytes, perhaps cut within a character, are; None for other data."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return None
    plain = all(character.isprintable() or character in "\t\r\n\f" for character in text)
    return text if text.strip() and plain else None


def _kind_of_text(text: str, encoding: str) -> tuple[str, str]:
    if _is_web_page(text):
        return _WEB_PAGE
    if "<svg" in text.lower():
        return "SVG, a vector format", "convert it to PNG"
    name = "text in UTF-16" if encoding == "utf-16" else "text"
    return f"{name} and not an image", "move it elsewhere"


def _foreign(stream: BinaryIO) -> str:
    stream.seek(0)
    kind = foreign_kind(stream.read(HEAD_BYTES))
    if kind is None:
        return "is not an image that Pillow can read, or is damaged"
    return "is {}; {}".format(*kind)


def decode(stream: BinaryIO) -> np.ndarray:
    """Decode a picture in any raster format that Pillow reads to uint8 [H, W, C], C = 1 or 3.

    The EXIF orientation is applied; palettes, CMYK and other colours become RGB (embedded colour
    profiles are ignored); transparency is composited on white; 16-bit grey v becomes
    round(v / 257). Raises Unusable for a picture that is damaged, has several frames, more than
    `MAX_PIXELS` pixels, or pixels whose range is not known.
    """
    try:
        return _decode(stream)
    except Unusable:
        raise
    except UnidentifiedImageError:
        raise Unusable(_foreign(stream)) from None
    except Image.DecompressionBombError:
        raise Unusable(f"has more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:
        # Decoders of foreign bytes raise nearly anything: struct.error, KeyError, SyntaxError.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unusable(f"is damaged ({reason})") from None


def _decode(stream: BinaryIO) -> np.ndarray:
    image = Image.open(stream)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unusable(f"has {width}x{height} pixels, more than {MAX_PIXELS:,}")
    if image.format in ("EPS", "WMF"):
        # Loading these runs an interpreter (Ghostscript) on a foreign program.
        raise Unusable(f"is {image.format}, a vector format; convert it to PNG")
    if image.format == "PNG":
        # Loading alone neither checks the chunks' checksums nor notices a missing end.
        image.verify()
        stream.seek(0)
        image = Image.open(stream)
    frames = getattr(image, "n_frames", 1)
    # The further frames of these two are previews and layers of the same picture.
    if frames > 1 and image.format not in ("MPO", "PSD"):
        raise Unusable(f"has {frames} frames; save the one wanted as a file of its own")
    image.load()
    wide = _wide_grey(image)
    image = ImageOps.exif_transpose(image)
    if wide:
        values = np.asarray(image).astype(np.int64)
        grey = ((values + 128) // 257).astype(np.uint8)
        if "transparency" in image.info:
            grey[values == image.info["transparency"]] = 255
        return grey[:, :, None]
    if image.mode == "LAB":
        raise Unusable("has LAB colours; convert it to RGB")
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.asarray(image.convert(mode))
    return pixels[:, :, None] if mode == "L" else pixels


def upright_size(stream: BinaryIO) -> tuple[int, int]:
    """Height and width of the picture that `decode` would give, where its head says them.

    Raises Unusable for what is no picture.
    """
    try:
        image = Image.open(stream)
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception as error:  # as for `decode`
        raise Unusable(f"is damaged ({one_line(error)})") from None
    width, height = image.size
    return (width, height) if turned else (height, width)


def _wide_grey(image: Image.Image) -> bool:
    """Whether the pixels are grey in 0..65535; raises where their range is not known."""
    if image.mode.startswith("I;16"):
        # TIFF keeps 12-bit values unscaled in this mode.
        bits = image.tag_v2[258] if image.format == "TIFF" else (16,)
        if bits != (16,):
            raise Unusable(f"has {bits[0]}-bit pixels; convert it to 8 or 16 bits")
        return True
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return True
    if image.mode in ("I", "F"):
        kind = "32-bit or signed" if image.mode == "I" else "floating-point"
        raise Unusable(f"has {kind} pixels, whose range is not known; convert it to 8 bits")
    return False


def full_shape(image: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, C] to [H, W, C] with C = 1 or 3."""
    shape = "x".join(str(size) for size in image.shape)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise Unusable(f"has shape {shape}; it must be H,W or H,W,C with C = 1 or 3, C last")
    if 0 in image.shape:
        raise Unusable(f"has no pixels ({shape})")
    return image
