"""The one exception a user is meant to see, and what others have to say on one line of it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
FULL_TEXTS = ("no space left on device", "disk quota exceeded", "file write failed")


class UserError(Exception):
    """Bad params, or a missing or damaged input: one message naming it and the way out.

    The command line prints the message and exits with status 2, without a traceback.
    """


class Damaged(UserError):
    """A file whose content is not what was written.

    text: what is wrong and the way out, which is to delete something and run again.
    """

    def __init__(self, path: Path, text: str):
        super().__init__(f"{path}: {text}")
        self.path = path


class Transient(UserError):
    """What ended a job that is not to blame for it: another try may well succeed."""


def shown(name: object) -> str:
    """A file name as it can stand in a message of one line."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def one_line(error: BaseException) -> str:
    """The message of an exception, its line breaks and runs of blanks made single blanks."""
    return " ".join(str(error).split())


@contextlib.contextmanager
def room_for(path: Path, needed: int) -> Iterator[None]:
    """Makes a full disk, met while `needed` bytes are written to `path`, a UserError saying so."""
    try:
        yield
    except Exception as e:
        if any(_full(each) for each in _chain(e)):
            raise UserError(_no_room(path, f" where {needed:,} are needed")) from e
        raise


def system_message(error: BaseException, folder: Path) -> str | None:
    """One line for what the file system refused (room, permission, a file for a folder), else None.

    folder: where it was about to write, for errors that do not say.
    """
    for each in _chain(error):
        number = _number(each)
        name = each.filename if isinstance(each, OSError) else None
        path = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else folder
        if _full(each):
            return _no_room(path)
        if number in REFUSED:
            return (
                f"{path}: may not be written or read by this user ({os.strerror(number)}"
                f"{_owner(path)}); ask its owner for group permissions (umask 002), or set "
                "TSPACE_STORE to a folder of yours"
            )
        if number == errno.EIO:
            return f"{path}: the disk or the network failed ({os.strerror(number)}); run again"
        if number == errno.ENOTDIR or (number == errno.EEXIST and path.is_file()):
            return f"{path}: a file where a folder is needed; move it, or name another folder"
    return None


def _full(error: BaseException) -> bool:
    text = one_line(error).lower()  # of libraries that do not raise OSError
    return _number(error) in FULL or any(part in text for part in FULL_TEXTS)


def _number(error: BaseException) -> int | None:
    """The system's number of an error, also where a library written in Rust tells it in words."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else None


def _no_room(path: Path, needed: str = "") -> str:
    try:
        free = f", {shutil.disk_usage(_existing(path)).free:,} bytes free{needed}"
    except OSError:
        free = ""
    return f"{path}: the disk is full{free}; make room and run again (what is finished is kept)"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _existing(path: Path) -> Path:
    return next((p for p in (path, *path.absolute().parents) if os.path.lexists(p)), Path("/"))


def _owner(path: Path) -> str:
    try:
        return f", it belongs to {_existing(path).owner()}"
    except (OSError, KeyError):  # no such user on this host
        return ""
