"""What the algorithms refuse, in one line a person can act on."""


class CompressError(Exception):
    """Names the place, the value found there and the remedy; the command line prints it as it is."""
