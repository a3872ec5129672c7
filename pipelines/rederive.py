"""Proof that a quantized artifact is what its manifest says: some of its layers are made again and compared.

The parent, the calibration windows and the recipe are taken by the digests in the manifest, so nothing is guessed.
Each layer depends on how those before it were rounded, so the walk begins at the first and ends at the last that was
drawn. Only tensors are compared that quantization makes; `verify` has compared the bytes of the files. On another kind
of device, or with another number of them, sums come in another order and single codes come out otherwise: there each
linear has to lose as much as the stored one, within a tolerance.
"""

import json
import random
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.write import ModelWriter
from compress.corpus import load_windows
from compress.explain.closeness import output_errors
from compress.quantize.resources import Resources
from compress.quantize.walk import quantize_model
from pipelines.params import ParamsError
from pipelines.progress import show
from pipelines.stage import device, parent, versions
from pipelines.variants import AwqVariant
from registry.errors import RegistryError
from registry.manifest import MANIFEST, Manifest, read

TOLERANCE = 0.1  # of a linear's relative output error, from one machine to another
PROBED = 8  # windows on which those are measured


@dataclass(frozen=True)
class Rederived:
    """The layers that were drawn, and how the machine differs where bytes could not be compared."""

    layers: list[int]
    elsewhere: str = ""


class _AllComparedError(Exception):
    """The last drawn layer was compared: there is nothing left to walk for."""


class _Comparison(ModelWriter):
    """Takes what the quantizer writes: of each drawn layer what is stored and what was made."""

    def __init__(self, folder: Path, stored: Checkpoint, drawn: set[int]) -> None:
        super().__init__(folder, stored.config, "llama")
        self._stored, self._drawn = stored, drawn
        self.pairs: dict[int, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] = {}

    def layer(self, layer: int, tensors: Mapping[str, Tensor]) -> None:
        if layer in self._drawn:
            self.pairs[layer] = self._stored.tensors(self._stored.layer_names(layer)), dict(tensors)
        if layer == max(self._drawn):
            raise _AllComparedError

    def different(self) -> list[str]:
        """The names of tensors that the artifact has otherwise."""
        pairs = self.pairs.values()
        return [
            name
            for held, made in pairs
            for name in sorted(held.keys() | made.keys())
            if not _equal(held.get(name), made.get(name))
        ]

    def loses_otherwise(self, source: Checkpoint, tokens: Tensor) -> list[str]:
        """The linears that lose more or less than the stored ones, beyond the tolerance."""
        found = output_errors(source, tokens[:PROBED], self.pairs, device())
        return [
            f"layers.{n}.{name} ({100 * held[name]:.2f} % stored, {100 * again:.2f} % here)"
            for n, (held, made) in found.items()
            for name, again in made.items()
            if abs(held[name] - again) > TOLERANCE * again
        ]


def rederive(folder: Path, count: int, candidates: Iterable[Path], calibration: Path) -> Rederived:
    """The layers, drawn at random, whose every tensor came out again as it is stored; any other is refused.

    On other devices than the artifact was made on, what every linear loses has to come out again.
    """
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
    resources, tokens = Resources(device(), batch=recipe.batch), torch.from_numpy(windows.tokens)
    counted = None if windows.predicts is None else torch.from_numpy(windows.predicts)
    with TemporaryDirectory() as nowhere:
        comparison = _Comparison(Path(nowhere), stored, set(drawn))
        with suppress(_AllComparedError):
            quantize_model(Checkpoint(source), tokens, recipe, comparison, resources, show, counted=counted)
    if elsewhere := _elsewhere(manifest.made_on, resources.decides):
        if different := comparison.loses_otherwise(Checkpoint(source), tokens):
            raise RegistryError(_otherwise(folder, manifest, different))
    elif different := comparison.different():
        raise RegistryError(_otherwise(folder, manifest, different))
    return Rederived(drawn, elsewhere)


def _elsewhere(there: Mapping[str, object], here: Mapping[str, object]) -> str:
    """In what the machine that made an artifact differs from this one; an older artifact does not say."""
    return ", ".join(f"{name} {said}, here {here.get(name)}" for name, said in there.items() if here.get(name) != said)


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
