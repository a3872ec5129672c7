"""A model folder under canonical names: the configuration, the quantization if any, and its tensors on request."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from compress.checkpoint.config import INTERNLM2_CLASS, LayoutName, ModelConfig, parse_config, read_config
from compress.checkpoint.layout import PACKED, canonical_names, locate, split_fused
from compress.checkpoint.model import build_model
from compress.checkpoint.quantization import canonical
from compress.checkpoint.tensor_files import TensorFiles
from compress.errors import CompressError

Shape = tuple[int, ...]


class Checkpoint:
    """Reads a model folder of any supported layout, float or quantized, one tensor at a time.

    Opening it checks that every tensor of the configuration is there, in its size, and nothing else; none is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        raw = read_config(folder)
        self.config: ModelConfig = parse_config(raw, str(folder / "config.json"))
        self.layout: LayoutName = "internlm2" if raw["architectures"][0] == INTERNLM2_CLASS else "llama"
        said = raw.get("quantization_config")
        self.quantization: dict[str, object] | None = canonical(said, self.layout) if said else None
        self._files = TensorFiles(folder)
        self._fused: tuple[str, Tensor] | None = None
        self.names = self._canonical_names()
        expected = self._expected()
        self._check_names(set(expected))
        self._check_shapes(expected)

    def tensor(self, name: str) -> Tensor:
        """A canonical tensor on the CPU as it is stored."""
        place = locate(name, self.layout)
        if place.part is None:
            return self._files.read(place.name)
        if self._fused is None or self._fused[0] != place.name:
            self._fused = place.name, self._files.read(place.name)
        return split_fused(place.name.rsplit(".", 1)[1], self._fused[1], self.config)[place.part]

    def layer_names(self, layer: int) -> list[str]:
        """Canonical names of one decoder layer's tensors."""
        return sorted(name for name in self.names if name.startswith(f"model.layers.{layer}."))

    def outer_names(self) -> list[str]:
        """Canonical names of the tensors outside the decoder layers."""
        return sorted(name for name in self.names if not name.startswith("model.layers."))

    def tensors(self, names: list[str]) -> dict[str, Tensor]:
        """Some tensors by name; refuses what is not a number."""
        return dict(self._finite(names))

    def _canonical_names(self) -> set[str]:
        names = {n for n in canonical_names(self._files.names, self.layout) if "rotary_emb.inv_freq" not in n}
        return names - {"lm_head.weight"} if self.config.tied else names

    def _finite(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        for name in names:
            tensor = self.tensor(name)
            if tensor.is_floating_point() and (count := _not_finite(tensor)):
                file = self._files.file_of(locate(name, self.layout).name)
                raise CompressError(f"{file}: {name} holds {count} values that are NaN or infinite; use another copy")
            yield name, tensor

    def _expected(self) -> dict[str, Shape]:
        try:
            return expected_shapes(self.config)
        except Exception as error:  # transformers' own checks of a configuration raise whatever they like
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
            raise CompressError(
                f"{self.folder / 'config.json'}: makes no model ({reason}); write the published values"
            ) from None

    def _check_names(self, expected: set[str]) -> None:
        held = {_unpacked(name) for name in self.names}
        missing, unknown = sorted(expected - held), sorted(held - expected)
        if missing or unknown:
            parts = [
                f"{len(n)} {what} (first: {n[0]})" for n, what in ((missing, "missing"), (unknown, "unknown")) if n
            ]
            raise CompressError(f"{self.folder}: tensors {' and '.join(parts)}; config.json and weights disagree")

    def _check_shapes(self, expected: Mapping[str, Shape]) -> None:
        """Quantized linears keep their sizes in other shapes; those of the rest are what the configuration says."""
        on_disk: dict[str, list[Shape]] = {}  # a fused tensor has the rows of all its parts
        for name in sorted(self.names & expected.keys()):
            on_disk.setdefault(locate(name, self.layout).name, []).append(expected[name])
        wanted = {name: (sum(shape[0] for shape in parts), *parts[0][1:]) for name, parts in on_disk.items()}
        wrong = [name for name in wanted if self._files.shape(name) != wanted[name]]
        if wrong:
            first = f"{wrong[0]} is {_by(self._files.shape(wrong[0]))}, not {_by(wanted[wrong[0]])}"
            message = f"{len(wrong)} tensors of another size (first: {first}); config.json and weights disagree"
            raise CompressError(f"{self.folder}: {message}")


def _not_finite(tensor: Tensor) -> int:
    """How many values are NaN or infinite; torch has no such question for 8-bit types."""
    numbers = tensor.float() if tensor.element_size() == 1 else tensor
    return numbers.numel() - int(torch.isfinite(numbers).count_nonzero())


def _by(shape: Shape) -> str:
    return "×".join(map(str, shape))


def _unpacked(name: str) -> str:
    module, kind = name.rsplit(".", 1)
    return f"{module}.weight" if kind in PACKED else name


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor that a float model of this configuration has, under its canonical name."""
    shapes = {name: tuple(tensor.shape) for name, tensor in build_model(config).state_dict().items()}
    return {name: shape for name, shape in shapes.items() if not (config.tied and name == "lm_head.weight")}
