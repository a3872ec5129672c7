"""What serving refuses, in one line a person can act on."""


class ServingError(Exception):
    """Names the place, the value found there and the remedy; the command line prints it as it is."""
