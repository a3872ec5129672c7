"""Shapes in the signatures of compress/ are checked while the tests run; the pipeline runs once for all who ask."""

import sys

import pytest
import torch
from jaxtyping import install_import_hook

# The models here are so small that threads wait for each other: on two busy cores some tests took 70 times longer.
torch.set_num_threads(1)

install_import_hook("compress", "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def pruned_models_are_servable():
    """Whatever a test prunes in this process is held to the engine's contract, before the test reads it."""
    with pytest.MonkeyPatch.context() as patch:
        if "compress.prune.depth" in sys.modules:  # else none of the tests prunes, and the import takes seconds
            from servable import hold_

            hold_(patch)
        yield


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """A clone of this repository in which `dvc repro` has run."""
    from pipeline_run import Clone

    clone = Clone(tmp_path_factory.mktemp("pipeline") / "turbopress")
    clone.run("dvc", "repro")
    return clone


@pytest.fixture
def turbopress(monkeypatch, capsys):
    """Runs the command as it is installed, in the working folder; returns its exit status, stdout and stderr."""
    from pipelines import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["turbopress", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run
