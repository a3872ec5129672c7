"""8-bit weights for 8-bit inputs: SmoothQuant (arXiv 2211.10438), its exponent searched where the engine will round.

A channel of large activations takes the whole range that a token has; multiplying the weights' columns by s and
dividing the channel by it, in what produces it, hands a part of the difficulty over to the weights. Which part is
measured on a sample of tokens, with inputs and weights rounded as LMDeploy's PyTorch engine rounds them.
"""

# W (out, in) weight · x (tokens, in) sampled inputs · m (in,) greatest |x| over all tokens · s (in,) scale

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import ModelConfig
from compress.checkpoint.runner import LayerRunner
from compress.checkpoint.write import ModelWriter
from compress.progress import Progress, silent
from compress.quantize.counting import Counted
from compress.quantize.formats.int8 import pack_linear, quantization_config, rounded_inputs, unpacked_weight
from compress.quantize.journal import Journal
from compress.quantize.narrow import narrowed
from compress.quantize.resources import ON_CPU, Resources
from compress.quantize.schemes import Int8Recipe, SmoothSearch
from compress.quantize.sites import LINEARS, SITES, Site, divide_, joined_weight, producer_divisor, tie_for
from compress.quantize.stream import FLOATS, WHOLE_LAYER, Stream

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
    m: Tensor
    sampled: tuple[Tensor, ...] = ()

    def add(self, x: Float[Tensor, "tokens in_features"]) -> None:
        """Counts some tokens in."""
        x = x.float()
        self.m = torch.maximum(self.m, x.abs().amax(0)) if len(x) else self.m
        self.sampled = (*self.sampled, x[:: self.every])


@torch.no_grad()
def quantize_to_int8(
    checkpoint: Checkpoint,
    tokens: Integer[Tensor, "windows length"],
    recipe: Int8Recipe,
    writer: ModelWriter,
    resources: Resources = ON_CPU,
    progress: Progress = silent,
    journal: Journal | None = None,
    counted: Bool[Tensor, "windows length"] | None = None,
) -> list[SmoothedError]:
    """Writes the quantized model and returns what each linear lost on the float model's inputs.

    Tokens that are not `counted` are seen by others but are no inputs themselves. With a `journal` whose entries a
    killed run into the same folder left, it goes on behind the last of them.
    """
    runner = LayerRunner(checkpoint, resources.device, resources.batch, resources.dtype, prefetch=resources.prefetch)
    hidden = resources.room((*tokens.shape, runner.hidden_size), resources.near_bytes)
    runner.embed_(hidden, tokens)
    floats, errors = Stream(runner, hidden), []
    for n in progress(range(checkpoint.config.num_layers), "layer"):
        layer, finished = runner.load(n), journal.finished(n, writer) if journal else None
        if finished is not None:
            floats.move_(layer, *WHOLE_LAYER)
            errors += [SmoothedError(**row) for row in finished[0]]
        else:
            seen = _inputs(layer, floats, counted)
            lost = _smoothed_(layer.float(), seen, recipe, checkpoint.config, n)
            writer.layer(n, _stored(layer, n))
            if journal:
                journal.finish(n, [asdict(error) for error in lost])
            errors += lost
        runner.release(n)
    writer.outer(narrowed(checkpoint.tensors(checkpoint.outer_names()), torch.float16))
    writer.close(quantization_config())
    return errors


def _inputs(layer: nn.Module, floats: Stream, counted: Tensor | None) -> list[Inputs]:
    """What each site's linears see; the windows stand behind the layer afterwards."""
    windows, length, _ = floats.hidden.shape
    every = max(1, (windows * length if counted is None else int(counted.sum())) // SAMPLE)
    pick, slices, seen = Counted(counted), floats.hidden.slices(), []
    for site, step in zip(SITES, FLOATS, strict=True):
        inputs = Inputs(
            every, torch.zeros(layer.get_parameter(f"{site.key}.weight").shape[1], device=floats.hidden.device)
        )
        for at, (_, x) in zip(slices, floats.through(layer, step), strict=True):
            inputs.add(pick(at, x))
        seen.append(inputs)
    return seen


def _smoothed_(
    layer: nn.Module, seen: list[Inputs], recipe: Int8Recipe, config: ModelConfig, n: int
) -> list[SmoothedError]:
    """Folds every site's best scales into a layer in float32; what each linear loses with them."""
    parts = zip(SITES, seen, strict=True)
    return [error for site, inputs in parts for error in _smooth_(layer, site, inputs, recipe, config, n)]


def _smooth_(
    layer: nn.Module, site: Site, inputs: Inputs, recipe: Int8Recipe, config: ModelConfig, n: int
) -> list[SmoothedError]:
    """Folds the best scales of a site into the layer; its function stays what it was."""
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
