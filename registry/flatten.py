"""A nested recipe as flat names, for places that know only names and texts: MLflow's params, a card's table."""

import json
from collections.abc import Mapping

from pydantic import JsonValue


def flatten(value: Mapping[str, JsonValue], prefix: str = "") -> dict[str, str]:
    """{"scales": {"grid": 20}} becomes {"scales.grid": "20"}; a list stays one JSON text."""
    flat: dict[str, str] = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            flat |= flatten(entry, f"{prefix}{name}.")
        else:
            flat[prefix + name] = entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)
    return flat
