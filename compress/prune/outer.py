"""What lies outside the decoder layers when the residual stream is narrowed: embeddings, final norm, head."""

from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import rms_norm

from compress.checkpoint.config import ModelConfig
from compress.checkpoint.hidden import HiddenStates
from compress.prune.least_squares import refit
from compress.quantize.counting import Counted
from compress.quantize.statistics import Accumulator

NORM, HEAD = "model.norm.weight", "lm_head.weight"


def rms_ratio(whole: HiddenStates, channels: Int64[Tensor, " channels"]) -> float:
    """The root mean square over some channels beside that over all, the mean over tokens.

    A norm that reads only those channels divides by so much more; its weight is multiplied by it.
    """
    total, count = 0.0, 0
    for _, h in whole.batches():
        some, every = (part.float().square().mean(-1) for part in (h[..., channels], h))
        total += float((some / every.clamp(min=1e-12)).sqrt().sum())
        count += every.numel()
    return total / count


def narrowed_outer(
    outer: dict[str, Tensor],
    config: ModelConfig,
    whole: HiddenStates,
    pruned: HiddenStates,
    channels: Int64[Tensor, " channels"],
    damping: float | None,
    counted: Counted,
) -> dict[str, Tensor]:
    """The outer tensors on some channels; a head of its own makes good what it can, unless damping is None."""
    ratio = rms_ratio(whole, channels.to(whole.device))
    made = {name: tensor[..., channels].contiguous() for name, tensor in outer.items()}
    made[NORM] = (made[NORM].float() * ratio).to(outer[NORM].dtype)
    if HEAD in outer and damping is not None:
        eps, inputs = float(config.fields["rms_norm_eps"]), Accumulator()
        norms = [outer[NORM].float().to(whole.device), made[NORM].float().to(whole.device)]
        for (at, h), (_, h_whole) in zip(pruned.batches(), whole.batches(), strict=True):
            x_whole, x = (rms_norm(v.float(), w.shape, w, eps) for v, w in zip((h_whole, h), norms, strict=True))
            inputs.add(counted(at, x), drift=counted(at, x_whole))
        means = inputs.means()
        assert means.R is not None
        W, B = (tensors[HEAD].float().to(whole.device) for tensors in (outer, made))
        made[HEAD] = refit(B, W @ means.R, means.H, damping, "lm_head").to("cpu", outer[HEAD].dtype)
    return made
