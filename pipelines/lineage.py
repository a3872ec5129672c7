"""Which model is made from which, read from a raw `params.yaml`: its names and circles can be judged whatever else is
wrong with the file."""

import re
from collections.abc import Iterator, Mapping

FAMILIES = ("prune", "distill", "quantize")
ROLES = ("from", "teacher")
REPAIRED = ("distill", "from")  # the one place where a quantized model is a parent
BASE = "base"
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Aliases of MLflow's own, the base, and reports/summary.json.
RESERVED = re.compile(r"latest|v\d+|base|summary", re.IGNORECASE)

Parents = Mapping[str, str]  # role → model
Families = Mapping[str, Mapping[str, Parents]]  # family → variant → its parents


def families(raw: object) -> Families:
    """What the file says of each variant's parents, without the parts that are of a wrong type."""
    return {family: {key: _parents(said) for key, said in _strings(raw, family).items()} for family in FAMILIES}


def _strings(raw: object, family: str) -> dict[str, object]:
    variants = raw.get(family) if isinstance(raw, Mapping) else None
    return {k: v for k, v in variants.items() if isinstance(k, str)} if isinstance(variants, Mapping) else {}


def _parents(said: object) -> dict[str, str]:
    named = {role: said.get(role) for role in ROLES} if isinstance(said, Mapping) else {}
    return {role: model for role, model in named.items() if isinstance(model, str)}


def problems(raw: object) -> Iterator[str]:
    """Names that cannot be, parents that are not there, and circles; each with its place first."""
    found = families(raw)
    yield from _names(found)
    yield from _edges(found)
    yield from _circles(_with_texts(found, raw))


def _with_texts(found: Families, raw: object) -> Families:
    """The same and the texts that models write: a variant made on one comes from it, and it from its model."""
    texts = {f"generate.{key}": _parents(said) for key, said in _strings(raw, "generate").items()}
    variants = {
        family: {key: {**parents, **_text(_strings(raw, family)[key], texts)} for key, parents in variants.items()}
        for family, variants in found.items()
    }
    return {**variants, "texts": texts}


def _text(said: object, texts: Mapping[str, Parents]) -> dict[str, str]:
    name = f"generate.{said.get('data')}" if isinstance(said, Mapping) else ""
    return {"data": name} if name in texts else {}


def _names(found: Families) -> Iterator[str]:
    owner: dict[str, str] = {}
    for family, key, _ in _variants(found):
        if not KEY.fullmatch(key) or RESERVED.fullmatch(key):
            rule = "use letters, digits, _ and -, a letter or digit first, but not base, latest, summary or v1"
            yield f"{family}.{key}: no name for a variant; {rule}"
        if owner.setdefault(key, family) != family:
            yield f"{family}.{key}: {owner[key]} has a variant of this name too; rename one"


def _edges(found: Families) -> Iterator[str]:
    models = {BASE: BASE}  # name → family, the first where two have it
    for family, key, _ in _variants(found):
        models.setdefault(key, family)
    for family, key, parents in _variants(found):
        for role, parent in parents.items():
            if parent not in models:
                yield f"{family}.{key}.{role}: no model is named {parent}; there are {', '.join(models)}"
            elif (family, role) != REPAIRED and _is_quantized(found, models, parent):
                yield f"{family}.{key}.{role}: {parent} is quantized already; start from a 16-bit model"


def _is_quantized(found: Families, models: Parents, key: str) -> bool:
    """Whether a model comes from `quantize`, or was made from one that does by distillation, which keeps its format."""
    seen: set[str] = set()
    while models.get(key) == "distill" and key not in seen:
        seen.add(key)
        key = found["distill"][key].get("from", key)
    return models.get(key) == "quantize"


def _circles(found: Families) -> Iterator[str]:
    """Each circle once, at its first variant in the file."""
    parents_of = {key: parents for _, key, parents in _variants(found) if key != BASE}
    told: set[str] = set()
    for family, key, parents in _variants(found):
        for role, parent in parents.items() if key in parents_of else ():
            way = _way(parents_of, parent, key)
            if way and not told.issuperset(way):
                told.update(way)
                yield f"{family}.{key}.{role}: goes in a circle: {' from '.join([key, *way])}"


def _way(parents_of: Mapping[str, Parents], start: str, goal: str) -> list[str]:
    """A way from `start` back to `goal` along parents, or nothing where there is none."""
    ways, seen = [[start]], {start}
    for way in ways:
        if way[-1] == goal:
            return way
        further = [parent for parent in parents_of.get(way[-1], {}).values() if parent not in seen]
        seen.update(further)
        ways.extend([*way, parent] for parent in further)
    return []


def _variants(found: Families) -> Iterator[tuple[str, str, Parents]]:
    return ((family, key, parents) for family, variants in found.items() for key, parents in variants.items())
