"""8-bit weights for 8-bit inputs: SmoothQuant (arXiv 2211.10438), its exponent searched where the engine will round.

A channel of large activations takes the whole range that a token has; multiplying the weights' columns by s and
dividing the channel by it, in what produces it, hands a part of the difficulty over to the weights. Which part is
measured on a sample of tokens, with inputs and weights rounded as LMDeploy's PyTorch engine rounds them.
"""

# W (out, in) weight · x (tokens, in) sampled inputs · m (in,) greatest |x| over all tokens · s (in,) scale

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import ModelConfig
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.progress import Progress, silent
from compress.quantize.formats.int8 import pack_linear, quantization_config, rounded_inputs, unpacked_weight
from compress.quantize.narrow import narrowed
from compress.quantize.schemes import Int8Recipe, SmoothSearch
from compress.quantize.sites import LINEARS, SITES, Site, divide_, joined_weight, producer_divisor, tie_for

SAMPLE = 512  # tokens on which exponents are compared
SMALLEST = 1e-4  # channels that are never active, or never read, must not divide by zero


@dataclass(frozen=True)
class SmoothedError:
    """Relative output error (‖Δy‖² / ‖y‖²) of one linear with rounded inputs, and what it is without smoothing."""

    layer: int
    linear: str
    error: float
    nearest_error: float


@dataclass
class Inputs:
    """What a site's linears saw: each channel's greatest magnitude, and every so many tokens as they were."""

    every: int
    m: Tensor | None = None
    sampled: tuple[Tensor, ...] = ()

    def watch(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Counts a batch in; a forward pre-hook."""
        x = args[0].detach().flatten(0, -2).float()
        largest = x.abs().amax(0)
        self.m = largest if self.m is None else torch.maximum(self.m, largest)
        self.sampled = (*self.sampled, x[:: self.every])


def quantize_to_int8(
    checkpoint: Checkpoint,
    tokens: Integer[Tensor, "windows length"],
    recipe: Int8Recipe,
    writer: ModelWriter,
    *,
    device: str = "cpu",
    batch: int = 8,
    progress: Progress = silent,
) -> list[SmoothedError]:
    """Writes the quantized model and returns what each linear lost on the float model's inputs."""
    runner, errors = LayerRunner(checkpoint, device, batch), []
    hidden = runner.embed(tokens)
    every = max(1, tokens.numel() // SAMPLE)
    for n in progress(range(checkpoint.config.num_layers), "layer"):
        layer = runner.load(n)
        seen = {site.key: Inputs(every) for site in SITES}
        hooks = [layer.get_submodule(key).register_forward_pre_hook(inputs.watch) for key, inputs in seen.items()]
        hidden = runner.run(layer, hidden)
        for hook in hooks:
            hook.remove()
        for site in SITES:
            errors += _smooth_(layer, site, seen[site.key], recipe, checkpoint.config, n)
        writer.layer(n, _stored(layer, n))
        runner.release(n)
    writer.outer(narrowed(checkpoint.tensors(checkpoint.outer_names()), torch.float16))
    writer.close(quantization_config())
    return errors


def _smooth_(
    layer: nn.Module, site: Site, inputs: Inputs, recipe: Int8Recipe, config: ModelConfig, n: int
) -> list[SmoothedError]:
    """Folds the best scales of a site into the layer; its function stays what it was."""
    assert inputs.m is not None
    W, x = joined_weight(layer, site), torch.cat(inputs.sampled)
    s = torch.ones_like(inputs.m)
    if recipe.smooth is not None:
        s = search_smoothing(W, x, inputs.m, recipe.smooth, tie_for(site, config))
        for name in site.linears:
            layer.get_parameter(f"{name}.weight").data.mul_(s)
        divide_(layer.get_submodule(site.producer), producer_divisor(site, s, config))
    plain, ours = (output_errors(W, x, scale) for scale in (torch.ones_like(s), s))
    power = (x @ W.t()).square().sum(0)
    return [
        SmoothedError(n, name, *(float(e[rows].sum() / power[rows].sum().clamp(min=1e-30)) for e in (ours, plain)))
        for name, rows in site.rows(layer).items()
    ]


def search_smoothing(
    W: Float[Tensor, "out in_features"],
    x: Float[Tensor, "tokens in_features"],
    m: Float[Tensor, " in_features"],
    search: SmoothSearch,
    tie: Callable[[Tensor], Tensor],
) -> Float[Tensor, " in_features"]:
    """The s of least output error among m^α / |W|^(1−α), and 1; `tie` makes channels share one where they must."""
    w = W.abs().amax(0).clamp(min=SMALLEST)
    candidates = [torch.ones_like(m)]
    for step in range(1, search.points + 1):
        alpha = step / (search.points + 1)
        s = tie(m.clamp(min=SMALLEST) ** alpha / w ** (1 - alpha)).clamp(min=SMALLEST)
        candidates.append(s / (s.max() * s.min()).sqrt())
    errors = torch.stack([output_errors(W, x, s).sum() for s in candidates])
    return candidates[int(errors.argmin())]


def output_errors(
    W: Float[Tensor, "out in_features"], x: Float[Tensor, "tokens in_features"], s: Float[Tensor, " in_features"]
) -> Float[Tensor, " out"]:
    """Each output's squared error over the tokens when x / s and W · s are rounded to 8 bits."""
    rounded = unpacked_weight(pack_linear(W * s))
    return (rounded_inputs(x / s) @ rounded.t() - x @ W.t()).square().sum(0)


def _stored(layer: nn.Module, n: int) -> dict[str, Tensor]:
    """Canonical tensors of a layer with its linears in 8 bits."""
    prefix = f"model.layers.{n}."
    kept: dict[str, Tensor] = {}
    stored: dict[str, Tensor] = {}
    for name, parameter in layer.named_parameters():
        linear, part = name.rsplit(".", 1)
        if linear in LINEARS and part == "weight":
            stored |= {f"{prefix}{linear}.{k}": value.cpu() for k, value in pack_linear(parameter.data).items()}
        else:
            kept[prefix + name] = parameter.data.cpu()
    return stored | narrowed(kept, torch.float16)
