"""The house as CONTRIBUTING.md draws it: who may import whom, and that dvc.yaml says what each stage depends on."""

import re
import subprocess
import sys
from fnmatch import fnmatch

import pytest
from house import PACKAGES, ROOT, imports, is_code, module_file, modules, paths, reachable, stage_module, stages

from pipelines.params import Params

MAY_IMPORT = {
    "compress": {"compress"},
    "registry": {"registry"},
    "pipelines": {"pipelines", "compress", "registry", "serving"},
    "serving": {"serving", "registry"},
}
NEVER_IMPORTS = {
    "registry": {"torch", "transformers"},
    "serving": {"torch", "transformers"},
    "compress": {"mlflow", "dvc", "typer", "yaml", "rich"},
}
# What changes no result: the stage's own section of params.yaml is tracked as such, and the others only talk.
NO_DEP = {
    "pipelines.params", "pipelines.variants", "pipelines.progress", "compress.errors", "compress.room",
    "registry.errors", "serving.errors",
}  # fmt: skip
STAGES = stages()
STATIC = {name: stage for name, stage in STAGES.items() if not stage.get("always_changed")}
EVERY_MODULE = [module for package in PACKAGES for module in modules(package)]


def needed(name):
    """The files that decide a stage's result."""
    files = [module_file(module) for module in reachable(stage_module(STAGES[name]), NO_DEP)]
    return {file.relative_to(ROOT).as_posix() for file in files if file.name != "__init__.py"}


def covers(dep, file):
    return file == dep or file.startswith(f"{dep}/")


# --- imports


def test_the_reader_of_imports_sees_what_is_there():
    assert {"compress", "pipelines", "registry"} <= set(PACKAGES)
    assert {"compress.corpus", "tokenizers"} <= imports("pipelines.corpus")
    assert {"compress.corpus.windows", "numpy"} <= imports("compress.corpus.cut")
    assert "registry.resolve" in imports("pipelines.folders")  # inside a function
    assert "compress.quantize.gptq" in reachable("pipelines.quantize", NO_DEP)
    assert "compress.quantize.gptq" not in reachable("pipelines.corpus", NO_DEP)


@pytest.mark.parametrize("module", EVERY_MODULE)
def test_a_package_imports_only_those_below_it(module):
    package = module.split(".")[0]
    found = {name.split(".")[0] for name in imports(module)}
    assert found & set(PACKAGES) <= MAY_IMPORT[package]
    assert not found & NEVER_IMPORTS.get(package, set())


def test_no_python_of_ours_asks_to_run_a_checkpoint_s_code():
    asked = "trust_" + "remote_code"
    folders = [*PACKAGES, "tests", "examples", "benchmarks"]
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    assert [file.relative_to(ROOT).as_posix() for file in files if asked in file.read_text("utf8")] == []


# --- dvc.yaml


@pytest.mark.parametrize("name", STATIC)
def test_a_stage_depends_on_all_the_code_that_it_runs(name):
    deps = paths(STAGES[name], "deps")
    assert sorted(file for file in needed(name) if not any(covers(dep, file) for dep in deps)) == []


@pytest.mark.parametrize("name", STATIC)
def test_a_stage_depends_on_no_code_that_it_does_not_run(name):
    code = [dep for dep in paths(STAGES[name], "deps") if is_code(dep)]
    assert stage_module(STAGES[name]).replace(".", "/") + ".py" in code
    assert [dep for dep in code if not any(covers(dep, file) for file in needed(name))] == []
    assert len(code) == len(set(code))


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_reads_lies_here_or_is_made_by_a_stage(name):
    made = [out for stage in STAGES.values() for kind in ("outs", "metrics") for out in paths(stage, kind)]
    for dep in paths(STAGES[name], "deps"):
        is_made = any(fnmatch(dep, out) or fnmatch(out, dep) or covers(out, dep) or covers(dep, out) for out in made)
        assert is_made or (ROOT / dep).exists(), dep


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_reads_params_lists_the_sections_that_it_reads(name):
    module = stage_module(STAGES[name])
    listed = {entry.split(".")[0] for entry in STAGES[name].get("params", [])}
    if "pipelines.params" not in imports(module):
        assert listed == set()
    elif "params.yaml" not in STAGES[name]["deps"]:
        source = module_file(module).read_text("utf8")
        read = set(re.findall(r"(?:load\(\w+(?:\(\))?\)|\bparams)\.(\w+)", source)) & Params.model_fields.keys()
        assert listed == (read or {"prune", "distill", "quantize"})


def test_the_sources_are_looked_at_every_time():
    """DVC would not see a change in a text that the user put elsewhere; it does see one in those that lie here."""
    look_up = STAGES["register-base"]
    assert look_up["always_changed"] is True
    assert "--sources data/sources" in look_up["cmd"]
    assert {"params.yaml", "examples/demo/base", "examples/demo/text"} < set(STAGES["check"]["deps"])
    assert {f"data/sources/{name}.json" for name in ("base", "*")} <= {
        dep for name in ("fetch", "corpus") for dep in paths(STAGES[name], "deps")
    }


@pytest.mark.parametrize("family", ["prune", "distill", "quantize"])
def test_a_variant_s_stage_reads_its_own_section_only(family):
    assert STAGES[family]["params"] == [f"{family}.${{key}}"]


# --- prose


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_in_the_prose_is_in_the_makefile(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf8"), re.MULTILINE))
    named = set(re.findall(r"^\s*make ([a-z]+)|`make ([a-z]+)", (ROOT / page).read_text("utf8"), re.MULTILINE))
    words = {word for pair in named for word in pair if word}
    assert words
    assert words <= targets


@pytest.mark.parametrize("module", ["pipelines.register", "pipelines.compare", "pipelines.check", "pipelines.cli"])
def test_what_computes_nothing_does_not_wait_for_torch(module):
    """Six look-ups of a second `dvc repro` would wait a second each."""
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
