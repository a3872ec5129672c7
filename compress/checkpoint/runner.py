"""Running calibration windows through a model with one decoder layer in memory at a time.

What waits between two layers is the hidden states of all windows, on the host; what lies on the device is one layer
and one batch. So the peak does not grow with the number of layers.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from jaxtyping import Integer
from torch import Tensor, nn

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.hidden import Hidden, HiddenStates
from compress.checkpoint.load import load_into_, unpacked
from compress.checkpoint.model import build_model


class LayerRunner:
    """Embeds windows and runs them through decoder layers in `dtype` on `device`, `batch` windows at a time.

    With `prefetch` a thread reads the next layer's weights while the present one is at work.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str,
        batch: int,
        dtype: torch.dtype = torch.float32,
        *,
        prefetch: bool = False,
    ) -> None:
        self.checkpoint, self.device, self.batch, self.dtype = checkpoint, device, batch, dtype
        self._model = build_model(checkpoint.config).to_empty(device="meta", recurse=False)
        self._rope = self._model.model.rotary_emb.to(device)
        self._reader = ThreadPoolExecutor(1) if prefetch else None
        self._ahead: tuple[int, Future[dict[str, Tensor]]] | None = None

    @property
    def hidden_size(self) -> int:
        return int(self.checkpoint.config.fields["hidden_size"])

    def embed(self, tokens: Integer[Tensor, "windows length"]) -> Hidden:
        """The windows as the first decoder layer sees them, on the host."""
        (table,) = self.checkpoint.tensors(["model.embed_tokens.weight"]).values()
        return nn.functional.embedding(tokens, table).to(self.dtype)

    @torch.no_grad()
    def embed_(self, hidden: HiddenStates, tokens: Integer[Tensor, "windows length"]) -> None:
        """Fills `hidden` with the windows as the first decoder layer sees them."""
        (table,) = self.checkpoint.tensors(["model.embed_tokens.weight"]).values()
        table = table.to(self.device)
        for at in hidden.slices():
            hidden.put_(at, nn.functional.embedding(tokens[at].to(self.device), table).to(self.dtype))

    def load(self, layer: int) -> nn.Module:
        """A decoder layer with its weights, unpacked, on the device."""
        prefix = f"model.layers.{layer}."
        stored = {name: tensor.to(self.device, non_blocking=True) for name, tensor in self._read(layer).items()}
        module: nn.Module = self._model.model.layers[layer]
        load_into_(module, {k.removeprefix(prefix): v for k, v in unpacked(stored).items()}, self.dtype, self.device)
        return module

    def release(self, layer: int) -> None:
        """Forgets a layer's weights."""
        self._model.model.layers[layer].to("meta")

    @torch.no_grad()
    def run(self, layer: nn.Module, hidden: Hidden) -> Hidden:
        """The windows after a layer."""
        return torch.cat(list(self._batches(layer, hidden)))

    @torch.no_grad()
    def run_(self, layer: nn.Module, hidden: HiddenStates) -> None:
        """Takes the windows through a layer where they are."""
        for at, h in hidden.batches():
            hidden.put_(at, self._after(layer, h))

    def rope(self, hidden: Hidden) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions of a batch, on its device."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        return self._rope(hidden, positions)

    def _read(self, layer: int) -> dict[str, Tensor]:
        ahead, self._ahead = self._ahead, None
        tensors = ahead[1].result() if ahead and ahead[0] == layer else self._layer_tensors(layer)
        if self._reader and layer + 1 < self.checkpoint.config.num_layers:
            self._ahead = layer + 1, self._reader.submit(self._layer_tensors, layer + 1)
        return tensors

    def _layer_tensors(self, layer: int) -> dict[str, Tensor]:
        tensors = self.checkpoint.tensors(self.checkpoint.layer_names(layer))
        if torch.device(self.device).type != "cuda":
            return tensors
        return {name: tensor.pin_memory() for name, tensor in tensors.items()}

    def _batches(self, layer: nn.Module, hidden: Hidden) -> Iterator[Hidden]:
        for batch in hidden.split(self.batch):
            yield self._after(layer, batch.to(self.device)).to("cpu")

    def _after(self, layer: nn.Module, h: Hidden) -> Hidden:
        # No mask: the stock attention is causal without one, and windows have no padding.
        out = layer(h, attention_mask=None, position_embeddings=self.rope(h))
        return out[0] if isinstance(out, tuple) else out
