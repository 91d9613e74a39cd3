"""The error that means: the user's input is at fault, nothing has been done yet."""


class InputError(ValueError):
    """A fault in the configuration or in a file the user named, found before any work; the programs exit with code 2.

    The message says what was expected, what came and what to do.
    """
