"""What the algorithms refuse, in one line a person can act on, and what others refused, cut to fit into it."""


class CompressError(Exception):
    """Names the place, the value found there and the remedy; the command line prints it as it is."""


def first_line(error: BaseException) -> str:
    """What an error says, as far as it fits into a line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
