"""`params.yaml` as one value, checked as a whole: every problem is told at once, before any stage has run."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from compress.checkpoint.config import LayoutName
from compress.corpus import CorpusRecipe
from compress.distill.recipe import DistillRecipe
from compress.prune.recipe import DepthRecipe
from compress.quantize.recipe import AwqRecipe
from compress.quantize.turbomind import GROUP_SIZE
from compress.strict import Strict

FILE = "params.yaml"
BASE = "base"
KEY = re.compile(r"[A-Za-z0-9_-]+")
RESERVED = re.compile(r"latest|v\d+|base", re.IGNORECASE)  # MLflow's own aliases, and ours
Family = Literal["base", "prune", "distill", "quantize"]


class ParamsError(Exception):
    """Every problem of the file, one a line."""


class BaseSource(Strict):
    """Where the model comes from: a folder, a Hugging Face id, or modelscope:ORG/NAME, ids with a pinned revision."""

    source: str
    revision: str | None = None


class Data(Strict):
    """The three texts that the stages read."""

    calibration: CorpusRecipe
    evaluation: CorpusRecipe
    distillation: CorpusRecipe


class PruneVariant(DepthRecipe):
    """A pruned model."""

    from_: str = Field(alias="from")


class DistillVariant(DistillRecipe):
    """A distilled model."""

    from_: str = Field(alias="from")
    teacher: str


class QuantizeVariant(AwqRecipe):
    """A quantized model, written so that TurboMind loads it on `tensor_parallel` GPUs."""

    from_: str = Field(alias="from")
    layout: LayoutName = "llama"
    tensor_parallel: int = Field(1, ge=1)


class Registry(Strict):
    """The registered model's name in MLflow."""

    model: str


class Params(Strict):
    """The whole file."""

    base: BaseSource
    data: Data
    prune: dict[str, PruneVariant]
    distill: dict[str, DistillVariant]
    quantize: dict[str, QuantizeVariant]
    registry: Registry

    @property
    def variants(self) -> dict[str, Family]:
        """Every model by name, the base first, each with the family that makes it."""
        families: tuple[Family, ...] = ("prune", "distill", "quantize")
        made: dict[str, Family] = {key: family for family in families for key in getattr(self, family)}
        first: dict[str, Family] = {BASE: "base"}
        return first | made

    def parents(self, key: str) -> dict[str, str]:
        """The models that `key` is made from, by role."""
        match self.prune.get(key) or self.distill.get(key) or self.quantize.get(key):
            case DistillVariant(from_=student, teacher=teacher):
                return {"from": student, "teacher": teacher}
            case PruneVariant(from_=source) | QuantizeVariant(from_=source):
                return {"from": source}
        return {}


class _UniqueKeys(yaml.SafeLoader):
    """YAML says that a repeated key is an error; its loader keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} occurs twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


def load(root: Path) -> Params:
    """The parameters of the repository at `root`, or `ParamsError` with everything that is wrong with them."""
    path = root / FILE
    try:
        raw = yaml.load(path.read_text("utf8"), _UniqueKeys)  # noqa: S506 - a SafeLoader
        params = Params.model_validate(raw)
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; run this from a turbopress repository") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{FILE}: not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise ParamsError("\n".join(_explain(problem) for problem in error.errors())) from None
    found = list(problems(params))
    if found:
        raise ParamsError("\n".join(f"{FILE}: {problem}" for problem in found))
    return params


def _explain(problem: Mapping[str, object]) -> str:
    parts = problem["loc"]
    assert isinstance(parts, tuple)
    place = ".".join(str(part) for part in parts) or "the file"
    message = str(problem["msg"])
    if problem["type"] == "extra_forbidden":
        return f"{FILE}: {place}: unknown key; remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"{FILE}: {place}: missing; see params.yaml in the README"
    return f"{FILE}: {place}: {message[0].lower()}{message[1:]}, found {problem['input']!r}"


def problems(params: Params) -> Iterator[str]:
    """What the types cannot say: names, what is made from what, what no engine would load."""
    yield from _names(params)
    yield from _edges(params)
    yield from _circles(params)
    for key, variant in params.quantize.items():
        if variant.group_size != GROUP_SIZE:
            yield f"quantize.{key}.group_size: {variant.group_size}; TurboMind takes {GROUP_SIZE} only"


def _names(params: Params) -> Iterator[str]:
    families = {family: getattr(params, family) for family in ("prune", "distill", "quantize")}
    for family, variants in families.items():
        for key in variants:
            if not KEY.fullmatch(key) or RESERVED.fullmatch(key):
                yield f"{family}.{key}: no name for a variant; use letters, digits, _ and -, but not base, latest or v1"
            others = [f for f, v in families.items() if key in v and f != family]
            if others and family < others[0]:
                yield f"{family}.{key}: {others[0]} has a variant of this name too; rename one"


def _edges(params: Params) -> Iterator[str]:
    for key, family in params.variants.items():
        for role, parent in params.parents(key).items():
            place = f"{family}.{key}.{role}"
            if parent not in params.variants:
                yield f"{place}: no model is named {parent}; there are {', '.join(params.variants)}"
            elif params.variants[parent] == "quantize":
                yield f"{place}: {parent} is quantized already; start from a 16-bit model"


def _circles(params: Params) -> Iterator[str]:
    for start in params.variants:
        path = [start]
        while (parent := params.parents(path[-1]).get("from")) is not None and parent not in path:
            path.append(parent)
        if parent == start:
            yield f"{params.variants[start]}.{start}.from: goes in a circle: {' from '.join([*path, start])}"
