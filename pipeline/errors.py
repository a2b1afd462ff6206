"""The one exception a user is meant to see, and names and messages on one line of it."""


class UserError(Exception):
    """Bad params, or a missing or damaged input: one message naming it and the way out.

    The command line prints the message and exits with status 2, without a traceback.
    """


def shown(name: object) -> str:
    """A file name as it can stand in a message of one line."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def one_line(error: BaseException) -> str:
    """The message of an exception, its line breaks and runs of blanks made single blanks."""
    return " ".join(str(error).split())
