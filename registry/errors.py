"""What the registry refuses, in one line a person can act on."""


class RegistryError(Exception):
    """Names the place, the value found there and the remedy; the command line prints it as it is."""
