"""Running calibration windows through a model with one decoder layer in memory at a time.

What waits between two layers is the hidden states of all windows, on the host; what lies on the device is one layer
and one batch. So the peak does not grow with the number of layers.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_into_, unpacked
from compress.checkpoint.model import build_model

Hidden = Float[Tensor, "windows length hidden"]


class LayerRunner:
    """Embeds windows and runs them through decoder layers in float32 on `device`, `batch` windows at a time."""

    def __init__(self, checkpoint: Checkpoint, device: str, batch: int) -> None:
        self.checkpoint, self.device, self.batch = checkpoint, device, batch
        self._model = build_model(checkpoint.config).to_empty(device="meta", recurse=False)
        self._rope = self._model.model.rotary_emb.to(device)

    def embed(self, tokens: Integer[Tensor, "windows length"]) -> Hidden:
        """The windows as the first decoder layer sees them, on the host."""
        (table,) = self.checkpoint.tensors(["model.embed_tokens.weight"]).values()
        return nn.functional.embedding(tokens, table).float()

    def load(self, layer: int) -> nn.Module:
        """A decoder layer with its weights, unpacked to float32, on the device."""
        prefix = f"model.layers.{layer}."
        stored = unpacked(self.checkpoint.tensors(self.checkpoint.layer_names(layer)))
        module: nn.Module = self._model.model.layers[layer]
        load_into_(module, {k.removeprefix(prefix): v for k, v in stored.items()}, torch.float32, self.device)
        return module

    def release(self, layer: int) -> None:
        """Forgets a layer's weights."""
        self._model.model.layers[layer].to("meta")

    @torch.no_grad()
    def run(self, layer: nn.Module, hidden: Hidden) -> Hidden:
        """The windows after a layer."""
        return torch.cat(list(self._batches(layer, hidden)))

    def rope(self, hidden: Hidden) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions of a batch, on its device."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        return self._rope(hidden, positions)

    def _batches(self, layer: nn.Module, hidden: Hidden) -> Iterator[Hidden]:
        for batch in hidden.split(self.batch):
            x = batch.to(self.device)
            # No mask: the stock attention is causal without one, and windows have no padding.
            out = layer(x, attention_mask=None, position_embeddings=self.rope(x))
            yield (out[0] if isinstance(out, tuple) else out).to("cpu")
