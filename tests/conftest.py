"""Shapes in the signatures of compress/ are checked while the tests run; the pipeline runs once for all who ask."""

import pytest
from jaxtyping import install_import_hook

install_import_hook("compress", "beartype.beartype")


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """A clone of this repository in which `dvc repro` has run."""
    from pipeline_run import Clone  # noqa: PLC0415 - after the hook

    clone = Clone(tmp_path_factory.mktemp("pipeline") / "turbopress")
    clone.run("dvc", "repro")
    return clone
