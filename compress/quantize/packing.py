"""Where the walk looks for AWQ's storage until it asks `formats.int4` for the recipe's."""

from compress.quantize.formats.awq import pack_linear

__all__ = ["pack_linear"]
