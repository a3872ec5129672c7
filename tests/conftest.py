"""Shapes in the signatures of compress/ are checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("compress", "beartype.beartype")
