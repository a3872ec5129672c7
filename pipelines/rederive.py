"""Proof that a quantized artifact is what its manifest says: some of its layers are made again and compared.

The parent, the calibration windows and the recipe are taken by the digests in the manifest, so nothing is guessed.
Each layer depends on how those before it were rounded, so the walk begins at the first and ends at the last that was
drawn. Only tensors are compared that quantization makes; `verify` has compared the bytes of the files.
"""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.write import ModelWriter
from compress.corpus import load_windows
from compress.quantize.resources import Resources
from compress.quantize.walk import quantize_model
from pipelines.params import ParamsError
from pipelines.progress import show
from pipelines.stage import device, parent, versions
from pipelines.variants import AwqVariant
from registry.errors import RegistryError
from registry.manifest import MANIFEST, Manifest, read


class _AllComparedError(Exception):
    """The last drawn layer was compared: there is nothing left to walk for."""


class _Comparison(ModelWriter):
    """Takes what the quantizer writes, and keeps the names of tensors that the artifact has otherwise."""

    def __init__(self, folder: Path, stored: Checkpoint, drawn: set[int]) -> None:
        super().__init__(folder, stored.config, "llama")
        self._stored, self._drawn = stored, drawn
        self.different: list[str] = []

    def layer(self, layer: int, tensors: Mapping[str, Tensor]) -> None:
        if layer in self._drawn:
            held = self._stored.tensors(self._stored.layer_names(layer))
            self.different += sorted(n for n in held.keys() | tensors.keys() if not _equal(held.get(n), tensors.get(n)))
        if layer == max(self._drawn):
            raise _AllComparedError


def rederive(folder: Path, count: int, candidates: Iterable[Path], calibration: Path) -> list[int]:
    """The layers, drawn at random, whose every tensor came out again as it is stored; any other is refused."""
    manifest, stored = read(folder), Checkpoint(folder)
    if manifest.kind != "quantized":
        raise ParamsError(f"{folder}: is {manifest.kind}, and only quantization is done again; leave --rederive out")
    drawn = sorted(random.SystemRandom().sample(range(stored.config.num_layers), min(count, stored.config.num_layers)))
    source = _parent(folder, manifest, candidates)
    windows = load_windows(calibration)
    if windows.digest != manifest.data.get("calibration"):
        wanted = manifest.data.get("calibration", "none")
        raise RegistryError(f"{calibration}: holds windows {windows.digest}, but {folder} was made on {wanted}")
    if manifest.recipe.get("method", "awq") != "awq":
        raise ParamsError(f"{folder}: holds {manifest.recipe['method']}, and only 4 bits are done again; leave it out")
    recipe = AwqVariant.model_validate_json(json.dumps(manifest.recipe))
    with TemporaryDirectory() as nowhere:
        comparison = _Comparison(Path(nowhere), stored, set(drawn))
        try:
            tokens = torch.from_numpy(windows.tokens)
            counted = None if windows.predicts is None else torch.from_numpy(windows.predicts)
            quantize_model(Checkpoint(source), tokens, recipe, comparison, Resources(device()), show, counted=counted)
        except _AllComparedError:
            pass  # the walk is over because there is nothing left to compare
    if comparison.different:
        raise RegistryError(_otherwise(folder, manifest, comparison.different))
    return drawn


def _parent(folder: Path, manifest: Manifest, candidates: Iterable[Path]) -> Path:
    wanted = manifest.parents["from"]
    for place in candidates:
        if (place / MANIFEST).is_file() and read(place).digest == wanted:
            parent(place)
            return place
    raise RegistryError(f"{folder}: was made from {wanted}, which is not here; give it with --parent FOLDER")


def _otherwise(folder: Path, manifest: Manifest, different: list[str]) -> str:
    told = f"{different[0]} and {len(different) - 1} more" if len(different) > 1 else different[0]
    others = {name: f"{was}, here {versions().get(name)}" for name, was in manifest.versions.items()}
    changed = [f"{name} was {said}" for name, said in others.items() if manifest.versions[name] != versions().get(name)]
    why = f" ({'; '.join(changed)})" if changed else ""
    return f"{folder}: made again, {told} came out otherwise{why}; it is not what its manifest says, make it again"


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b)
