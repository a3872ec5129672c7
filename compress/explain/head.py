"""From the last layer's residual stream to a distribution: the final norm and the output head of a checkpoint."""

# h (windows, length, hidden) residual stream · W (vocab, hidden) head

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import rms_norm

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import unpacked
from compress.distill.fused import divergence


class Head:
    """A checkpoint's final norm and head on a device, in float32."""

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        stored = unpacked(checkpoint.tensors(checkpoint.outer_names()))
        name = "model.embed_tokens.weight" if checkpoint.config.tied else "lm_head.weight"
        self.W = stored[name].to(device, torch.float32)
        self._norm = stored["model.norm.weight"].to(device, torch.float32)
        self._eps = float(checkpoint.config.fields["rms_norm_eps"])

    def normed(self, h: Float[Tensor, "windows length hidden"]) -> Float[Tensor, "tokens hidden"]:
        """What the head reads."""
        return rms_norm(h.to(self.W.device), self._norm.shape, self._norm, self._eps).flatten(0, 1)


@torch.no_grad()
def window_kl(
    head: Head,
    h: Float[Tensor, "windows length hidden"],
    base_head: Head,
    base: Float[Tensor, "windows length base_hidden"],
    counts: Float[Tensor, "windows length"],
    batch: int,
) -> Float[Tensor, " windows"]:
    """The sum over each window's positions that count of KL(base ‖ variant) in nats."""
    rows = [
        (divergence(head.normed(ours), head.W, base_head.normed(theirs), base_head.W).cpu().view_as(c) * c).sum(1)
        for ours, theirs, c in zip(h.split(batch), base.split(batch), counts.split(batch), strict=True)
    ]
    return torch.cat(rows)
