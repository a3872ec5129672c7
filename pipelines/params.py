"""`params.yaml` as one value, checked as a whole: every problem is told at once, before any stage has run."""

import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from compress.corpus import CorpusRecipe
from compress.distill.recipe import DistillRecipe, GenerateRecipe
from compress.strict import Strict
from pipelines import lineage, repairs
from pipelines.limits import Gate
from pipelines.lineage import BASE
from pipelines.variants import Measured, Pruned, PruneVariant, QuantizeVariant, Served
from serving.profile import EngineProfile

FILE = "params.yaml"
_NOTHING = object()
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


class DistillVariant(DistillRecipe):
    """A distilled model."""

    from_: str = Field(alias="from")
    teacher: str
    data: str = Field(description="a text of `data` or of `generate`, to train on")


class OwnWords(GenerateRecipe):
    """A text that a model writes itself."""

    from_: str = Field(alias="from")
    prompts: Literal["calibration", "distillation"] = Field(description="the text whose beginnings it goes on from")
    with_prompts: bool = Field(False, description="the windows of that text come along, among its own")


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
    generate: dict[str, OwnWords] = Field(default_factory=dict)  # texts in a model's own words, by name
    kv_cache: dict[str, list[Literal[8, 4]]] = Field(default_factory=dict)  # variants measured with such a cache too
    gate: Gate = Gate()
    serve: EngineProfile = EngineProfile()  # what `turbopress serve` tells LMDeploy, unless a flag says otherwise

    @model_validator(mode="after")
    def _caches_of_variants(self) -> "Params":
        if unknown := sorted(self.kv_cache.keys() - self.variants.keys()):
            raise ValueError(f"kv_cache: no model is named {', '.join(unknown)}; there are {', '.join(self.variants)}")
        return self

    @model_validator(mode="after")
    def _texts_are_there(self) -> "Params":
        for key, own in self.generate.items():
            if not lineage.KEY.fullmatch(key) or key in Data.model_fields or key in ("sources", "reference"):
                raise ValueError(f"generate.{key}: is no name for a text, or has one already; rename it")
            if self.variants.get(own.from_, "quantize") == "quantize":
                raise ValueError(f"generate.{key}.from: no 16-bit model is named {own.from_}")
        texts = ["distillation", "calibration", *self.generate]  # not evaluation: it is what variants are judged by
        for place, data in self.texts.items():
            if data not in texts:
                raise ValueError(f"{place}: no text is named {data}; there are {', '.join(texts)}")
        return self

    @property
    def texts(self) -> dict[str, str]:
        """What each variant is made on, by its place in the file."""
        return {f"{place}.data": variant.data for place, variant in self._made().items()}

    @property
    def unsaid(self) -> list[str]:
        """Places that have a default here and need their word in the file: DVC reads them there, and has none."""
        return [f"{place}.data" for place, variant in self._made().items() if "data" not in variant.model_fields_set]

    def _made(self) -> dict[str, Measured | DistillVariant]:
        """Every variant by its place in the file."""
        families: Mapping[str, Mapping[str, Measured | DistillVariant]] = {
            "prune": self.prune, "distill": self.distill, "quantize": self.quantize,
        }  # fmt: skip
        return {f"{family}.{key}": made for family, variants in families.items() for key, made in variants.items()}

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
            case Pruned(from_=source) | Served(from_=source):
                return {"from": source}
        return {}


class _Loader(yaml.SafeLoader):
    """YAML says that a repeated key is an error, and YAML 1.2, which DVC reads, that 1e-3 is a number."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if id(node) not in self._checked:  # merging `<<` may come by a second time, with keys that it has put there
            self._checked.add(id(node))
            self._refuse_repeated(node)
        super().flatten_mapping(node)

    def _refuse_repeated(self, node: yaml.MappingNode) -> None:
        names = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in names[:number]:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} occurs twice", problem_mark=key.start_mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), [*"-+.0123456789"]
)


def load(root: Path) -> Params:
    """The parameters of the repository at `root`, or `ParamsError` with everything that is wrong with them."""
    raw = _read(root / FILE)
    found = list(lineage.problems(raw))
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        found = [_explain(problem, raw) for problem in error.errors()] + found
    if not found:
        found = list(repairs.problems(params.distill, params.quantize))
    if found:
        raise ParamsError("\n".join(f"{FILE}: {problem}" for problem in found))
    return params


def _read(path: Path) -> object:
    try:
        return yaml.load(path.read_text("utf8"), _Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; run this from a turbopress repository") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{FILE}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ParamsError(f"{FILE}:{line}: {error.problem}; correct the YAML") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ParamsError(f"{FILE}: {' '.join(str(error).split())}; correct the YAML") from None


def _explain(problem: Mapping[str, Any], raw: object) -> str:
    """One fault that pydantic found, its place first, in the words of the file."""
    place = ".".join(_place(problem["loc"], raw)) or "the file"
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown key; remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"{place}: missing; see params.yaml in the README"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error" and not problem["loc"]:
        return message  # our own, of several parts of the file: it begins with its place
    return f"{place}: {message[0].lower()}{message[1:]}, found {reprlib.repr(problem['input'])}"


def _place(parts: Sequence[object], raw: object) -> Iterator[str]:
    """The keys down to a fault, without the names that pydantic gives to alternatives between them."""
    for number, part in enumerate(parts, 1):
        inside = _inside(raw, part)
        if inside is not _NOTHING:
            raw = inside
            yield str(part)
        elif number == len(parts) and not str(part).startswith("["):
            yield str(part)


def _inside(raw: object, part: object) -> object:
    if isinstance(raw, Mapping):
        return raw.get(part, _NOTHING)
    return raw[part] if isinstance(raw, list) and isinstance(part, int) and part < len(raw) else _NOTHING
