"""The repository read as text: which module imports which, and what each stage of dvc.yaml says that it depends on."""

import ast
import re
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PACKAGES = [name for name in ("compress", "pipelines", "registry", "serving") if (ROOT / name).is_dir()]
PYTHON = re.compile(r"python -m ([\w.]+)")


def module_file(name):
    """The file of a module of ours, or None for others."""
    if name.split(".")[0] not in PACKAGES:
        return None
    place = ROOT.joinpath(*name.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return file if file.is_file() else None


def modules(package):
    """Names of all modules of a package."""
    files = sorted((ROOT / package).rglob("*.py"))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]


@cache
def imports(name):
    """Everything that a module imports, anywhere in it; of ours, modules and not the names in them."""
    found = set()
    for node in ast.walk(ast.parse(module_file(name).read_text("utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute here"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {module for module in inside if module_file(module)}
            found |= submodules or {node.module}
    return frozenset(found)


def reachable(start, stops):
    """The modules of ours that run with `start`, not looking further behind `stops`."""
    found, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in found and name not in stops:
            found.add(name)
            waiting += [module for module in imports(name) if module_file(module)]
    return found


def stages():
    """Every stage of dvc.yaml by name, a `foreach` stage as its template."""
    raw = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in raw.items()}


def stage_module(stage):
    """The module that a stage runs."""
    (name,) = PYTHON.findall(stage["cmd"])
    return name


def paths(stage, kind):
    """Paths of a stage's deps or outs, with * for what DVC fills in."""
    entries = [entry if isinstance(entry, str) else next(iter(entry)) for entry in stage.get(kind, [])]
    return [re.sub(r"\$\{[^}]*\}", "*", entry) for entry in entries]


def is_code(path):
    """Whether a dependency is code of ours."""
    return path.split("/")[0] in PACKAGES
