"""`turbopress explain`: where a quantized model lost what it lost, from the stored artifacts, and what to try."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from compress.checkpoint.checkpoint import Checkpoint
from compress.corpus import Windows, load_windows
from compress.evaluate.size import sizes
from compress.explain.clipping import scheme_of
from compress.explain.finding import About, Finding
from compress.explain.findings import findings
from compress.explain.measured import Explanation
from compress.explain.streams import Chosen
from compress.explain.walk import explain
from pipelines.explain_page import page, picture, screen
from pipelines.params import ParamsError, load
from pipelines.progress import show
from pipelines.stage import device, fresh_file, repository_root
from registry.attach import attach
from registry.errors import RegistryError
from registry.manifest import MANIFEST, Manifest, verify

TEXTS = ("evaluation", "calibration", "distillation")


def run(folder: Path, parent: Path | None, text: str, count: int, layers: str, *, as_json: bool) -> None:
    """Measures FOLDER beside its PARENT, tells what was found, and writes it to reports/explain and to MLflow."""
    root, key, variant = repository_root(), folder.resolve().name, Checkpoint(folder)
    if variant.quantization is None:
        raise ParamsError(f"{folder}: is not quantized; explain compares a quantized model with its 16-bit parent")
    parent = parent or _parent(root, key)
    manifest = _kin(folder, parent)
    base, windows = Checkpoint(parent), _windows(root, text, count)
    print(_cost(base, windows, layers), file=sys.stderr)
    measured = explain(base, variant, windows, layers, device=device(), progress=show)
    found = findings(measured, _about(folder, parent, text, variant, manifest))
    value = _value(measured, found, windows, manifest)
    files = _written(root / "reports" / "explain" / key, value, measured, found)
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(screen(measured, found, key))
    print(f"written: {', '.join(str(file.relative_to(root)) for file in files)}", file=sys.stderr)
    print(_attached(root, key, manifest, files), file=sys.stderr)


def _parent(root: Path, key: str) -> Path:
    params = load(root)
    if key in params.distill:
        source = params.distill[key].from_
        raise ParamsError(f"{key}: was trained after it was rounded, and explain looks at rounding; explain {source}")
    if key not in params.quantize:
        raise ParamsError(f"{key}: no variant under quantize; name the model that it was quantized from with --parent")
    return root / "models" / params.quantize[key].from_


def _kin(folder: Path, parent: Path) -> Manifest | None:
    """The variant's manifest, None for another's artifact; refuses a parent that it was not made from."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = verify(folder)
    if (parent / MANIFEST).is_file() and manifest.parents.get("from") != verify(parent).digest:
        raise ParamsError(
            f"{folder}: was not made from the {parent} that lies there; run `dvc repro`, or give --parent"
        )
    return manifest


def _windows(root: Path, text: str, count: int) -> Windows:
    """Some windows, from all over the text, so that each domain has its share."""
    if text not in TEXTS:
        raise ParamsError(f"--on: {text}; choose {', '.join(TEXTS)}")
    whole = load_windows(root / "data" / text)
    chosen = np.linspace(0, len(whole.tokens), min(count, len(whole.tokens)), endpoint=False).astype(int)
    mask = None if whole.mask is None else whole.mask[chosen]
    return Windows(whole.tokens[chosen], [whole.domains[n] for n in chosen], mask=mask)


def _cost(parent: Checkpoint, windows: Windows, layers: str) -> str:
    """What the choice of layers asks for, before it is begun."""
    count, chosen = parent.config.num_layers, Chosen.of(layers, parent.config.num_layers)
    stream_bytes = 4 * windows.tokens.size * int(parent.config.fields["hidden_size"])
    host = (3 + chosen.streams(count)) * stream_bytes / 1e6
    return (
        f"explain: {len(windows.tokens)} windows of {windows.tokens.shape[1]} tokens; {3 * count} runs of a layer and "
        f"for --layers {layers} up to {chosen.runs(count)} more; up to {host:,.0f} MB of hidden states on the host"
    )


def _about(folder: Path, parent: Path, text: str, variant: Checkpoint, manifest: Manifest | None) -> About:
    recipe = manifest.recipe if manifest else None
    size_bytes = int(sizes(folder)["size_bytes"])
    return About(folder.resolve().name, parent.resolve().name, text, recipe, size_bytes, _extra_bytes(variant))


def _extra_bytes(variant: Checkpoint) -> int | None:
    """What 16 bits instead of its scheme would add to a decoder layer, where its linears are in whole numbers."""
    scheme, fields = scheme_of(variant.quantization), variant.config.fields
    if scheme is None:
        return None
    hidden, inter, head_dim = fields["hidden_size"], fields["intermediate_size"], variant.config.head_dim
    heads = 2 * variant.config.num_heads + 2 * variant.config.num_kv_heads
    weights = hidden * (heads * head_dim + 3 * inter)
    return int(weights * (16 - scheme.bits - (16 + scheme.bits) / scheme.group_size) / 8)


def _value(
    measured: Explanation, found: list[Finding], windows: Windows, manifest: Manifest | None
) -> Mapping[str, Any]:
    """Everything, for programs."""
    artifact = {"artifact": manifest.digest} if manifest else {}
    return {**artifact, "windows_sha256": windows.digest, "findings": [*map(asdict, found)], **_plain(asdict(measured))}


def _plain(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _written(place: Path, value: Mapping[str, Any], measured: Explanation, found: list[Finding]) -> list[Path]:
    paths = [place.with_name(f"{place.name}.{kind}") for kind in ("json", "md", "png")]
    with fresh_file(paths[0]) as numbers, fresh_file(paths[1]) as text, fresh_file(paths[2]) as drawing:
        numbers.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf8")
        text.write_text(page(measured, found, place.name), "utf8")
        picture(measured, drawing)
    return paths


def _attached(root: Path, key: str, manifest: Manifest | None, files: list[Path]) -> str:
    """Where MLflow has the files; what was measured stands whether it has them or not."""
    if manifest is None:
        return "not in MLflow: no artifact of ours"
    model = load(root).registry.model
    try:
        version = attach(files, root=root, model=model, variant=key, digest=manifest.digest, place="explain")
    except RegistryError as error:
        return f"not in MLflow: {error}"
    return f"in MLflow: {model} v{version.number}, explain/"
