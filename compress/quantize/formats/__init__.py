"""How a quantized linear is stored: a file a format, each a pair of inverse verbs and what `config.json` says of it.

The walk asks `int4.format_named(recipe.format)` for `pack_linear(q, grid)` and `quantization_config(group_size,
kept)`; who reads a folder asks `stored`, which knows every format by the names of its tensors.
"""
