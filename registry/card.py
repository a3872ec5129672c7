"""The model card: README.md of an artifact, for the people and the hubs that open the folder.

It says what the model was made from, how, and how to serve it. It holds no date and no measurement, so that equal
models have equal cards and equal digests; the measured table is the description of the registered version.
"""

from collections.abc import Mapping, Sequence

import yaml
from pydantic import JsonValue

from registry.flatten import flatten
from registry.manifest import IN_FEW_BITS, Kind

OPENING = {
    "base": "the unchanged base model, in the form the other variants are compared with",
    "pruned": "a pruned model: parts of the base were removed",
    "distilled": "a distilled model: a smaller model trained to answer like its teacher",
    "quantized": "a quantized model: its weights are stored in fewer bits",
    "repaired": "a quantized model, trained further in its format to answer like its teacher",
}

PYTORCH_ONLY = ("smooth_quant",)  # formats that LMDeploy's other engine does not read


def model_card(
    *,
    name: str,
    kind: Kind,
    recipe: Mapping[str, JsonValue],
    origin: Mapping[str, str],
    base_model: str | None,
    quant_method: str | None = None,
    parents: Mapping[str, str] | None = None,
    license_name: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """The card's text; equal arguments give equal text.

    `base_model` is the base's id on a hub, None where it has none; `quant_method` is what config.json says of the
    weights' format ("awq"), None where they are plain.
    """
    front = _front_matter(kind, base_model, license_name, ["turbopress", "lmdeploy", kind, *tags])
    made_of = _table("from", "is", {**origin, **{f"{r} (digest)": d for r, d in (parents or {}).items()}})
    sections = [
        f"---\n{front}---",
        f"# {name}",
        f"{OPENING[kind][0].upper()}{OPENING[kind][1:]}.",
        f"## Made from\n\n{made_of}",
        f"## How it was made\n\n{_table('setting', 'value', flatten(recipe))}",
        _serving(quant_method),
        "`manifest.json` lists the sha256 of every file, the seed and the digests of the parents and the data.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(kind: Kind, base_model: str | None, license_name: str | None, tags: list[str]) -> str:
    front: dict[str, JsonValue] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if base_model is not None:
        front["base_model"] = base_model
        # The relations that hubs know have no word for pruned or distilled.
        front["base_model_relation"] = "quantized" if kind in IN_FEW_BITS else "finetune"
    if license_name is not None:
        front["license"] = license_name
    front["tags"] = [*tags]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _serving(quant_method: str | None) -> str:
    engine = "pytorch" if quant_method in PYTORCH_ONLY else "turbomind"
    command = f"lmdeploy serve api_server FOLDER --backend {engine}"
    command += f" --model-format {quant_method}" if quant_method and engine == "turbomind" else ""
    words = "With LMDeploy 0.18, where FOLDER is the folder of this file:"
    return f"## Serving\n\n{words}\n\n```sh\n{command}\n```"


def _table(left: str, right: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
    return "\n".join([f"| {left} | {right} |", "| --- | --- |", *lines])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
