"""The one exception a user is meant to see."""


class UserError(Exception):
    """Bad params, or a missing or damaged input: one message naming it and the way out.

    The command line prints the message and exits with status 2, without a traceback.
    """
