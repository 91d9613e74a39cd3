"""The errors whose message says all that the user needs; the programs print them without a traceback."""


class InputError(ValueError):
    """A fault in the configuration or in a file the user named, found before any work; the programs exit with code 2.

    The message says what was expected, what came and what to do.
    """


class RunError(RuntimeError):
    """A run cannot go on; the programs exit with code 1. The message says what stands and what to do."""
