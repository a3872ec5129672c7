"""The other programs that make 4-bit weights, each called as its own documentation says, on windows that we hand it.

A program takes a model folder and calibration windows (count, length) and returns what it made as plain weights: every
linear layer of a decoder block as (q − z)·s in float32 from the codes, zeros and scales that it chose, all else (norms
into which it folded scales, embeddings) as it left it. Nothing of a program's arithmetic is replaced: LMDeploy's loader
of hub data sets gives way to our windows, and the loading and saving that its one function mixes with quantizing are
not counted, so that `elapsed_s` is quantizing alone for everybody. Without a GPU, for try-outs, two places that take
one for granted are mended; the comments there say which.

All: 4 bits, asymmetric, group 64, `lm_head` left alone, the program's defaults unless a row's `settings` say otherwise.
"""

import importlib.metadata
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

GROUP, BITS = 64, 4
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # nibble of a packed word that holds column 0, 1, …
Weights = dict[str, Tensor]


@dataclass
class Clock:
    """Seconds that a program spent on quantizing: all of it, less the parts that are set aside."""

    elapsed_s: float = 0.0

    @contextmanager
    def running(self, sign: int = 1) -> Iterator[None]:
        """Adds the time of a block; with sign −1 takes it off."""
        start = _now()
        yield
        self.elapsed_s += sign * (_now() - start)

    def aside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time not counted."""

        def uncounted(*args: Any, **kwargs: Any) -> Any:
            with self.running(-1):
                return function(*args, **kwargs)

        return uncounted


@dataclass
class Made:
    """What a program made, how long it took and how it was asked."""

    weights: Weights
    elapsed_s: float
    settings: dict[str, Any]
    packages: list[str]

    @property
    def versions(self) -> dict[str, str]:
        """Of the libraries that decide the result."""
        return {name: importlib.metadata.version(name) for name in ["torch", "transformers", *self.packages]}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def device() -> str:
    """Where programs run: the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def dequantized(codes: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    """(q − z)·s in float32; codes are (out, in), zeros and scales (out, groups)."""
    grouped = codes.float().view(*scales.shape, -1)
    return ((grouped - zeros.float()[..., None]) * scales.float()[..., None]).flatten(1)


# --- LMDeploy


def _nibbles(packed: Tensor) -> Tensor:
    """int32 words (rows, columns / 8) to codes (rows, columns), in the order of AWQ's gemm format."""
    shifts = torch.tensor([4 * position for position in AWQ_ORDER], dtype=torch.int32)
    return ((packed[..., None] >> shifts) & 15).flatten(1)


def _unpacked(stored: Weights) -> Weights:
    """A model in AWQ's gemm format as plain weights."""
    quantized = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    plain = {name: tensor for name, tensor in stored.items() if not name.endswith((".qweight", ".qzeros", ".scales"))}
    for name in quantized:
        codes, zeros = (_nibbles(stored[f"{name}.{part}"]).T for part in ("qweight", "qzeros"))
        plain[f"{name}.weight"] = dequantized(codes.contiguous(), zeros, stored[f"{name}.scales"].T)
    return plain


@contextmanager
def _own_parts(windows: Tensor, clock: Clock) -> Iterator[None]:
    """While open, LMDeploy calibrates on our windows, and its loading and saving do not count."""
    from lmdeploy.lite.apis import calibrate
    from transformers import PreTrainedModel

    with ExitStack() as stack:
        replaced = [
            (calibrate, "get_calib_loaders", lambda *_, **__: [row[None] for row in windows]),
            (calibrate, "load_model_and_tokenizer", clock.aside(calibrate.load_model_and_tokenizer)),
            (PreTrainedModel, "save_pretrained", clock.aside(PreTrainedModel.save_pretrained)),
        ]
        if device() == "cpu":  # its search keeps the weights it goes back to by `.cpu()`, which copies only off a GPU
            replaced.append((Tensor, "cpu", lambda tensor: tensor.clone()))
        for place, name, ours in replaced:
            stack.enter_context(mock.patch.object(place, name, ours))
        yield


def lmdeploy(model: Path, windows: Tensor, *, search: bool) -> Made:
    """`lmdeploy lite auto_awq`, with or without `--search-scale`; weights are read back from the folder it wrote."""
    from lmdeploy.lite.apis.auto_awq import auto_awq
    from safetensors.torch import load_file

    settings, clock = {"search_scale": search, "dtype": "float16", "batch_size": 32}, Clock()
    with tempfile.TemporaryDirectory() as out:
        with _own_parts(windows, clock), clock.running():
            auto_awq(
                str(model), out, calib_samples=len(windows), calib_seqlen=windows.shape[1], w_bits=BITS,
                w_group_size=GROUP, device=device(), **settings,
            )  # fmt: skip
        weights = _unpacked(load_file(Path(out) / "model.safetensors"))
    return Made(weights, clock.elapsed_s, settings, ["lmdeploy"])


# --- AutoRound and llm-compressor work on a model in memory


def _load(model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)


def _rows(windows: Tensor) -> list[dict[str, Tensor]]:
    return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in windows]


def _gathered(model: nn.Module, quantized: Callable[[Any], Tensor]) -> Weights:
    """A model's weights, those of the linear layers inside its blocks as `quantized` reads them off."""
    weights = {}
    for name in [name for name, _ in model.named_parameters() if name.endswith((".weight", ".bias"))]:
        place, _, leaf = name.rpartition(".")
        module = model.get_submodule(place)
        is_quantized = leaf == "weight" and isinstance(module, nn.Linear) and ".layers." in name
        weights[name] = quantized(module) if is_quantized else getattr(module, leaf)
    return weights


def _autoround_weight(layer: Any) -> Tensor:
    """AutoRound leaves the rounded weight in bf16, with its scales and zeros: the codes are the nearest."""
    scales, zeros, weight = (tensor.detach().float().cpu() for tensor in (layer.scale, layer.zp, layer.weight))
    codes = (weight.view(*scales.shape, -1) / scales[..., None]).round() + zeros[..., None]
    exact = dequantized(codes.flatten(1), zeros, scales)
    if codes.min() < 0 or codes.max() >= 2**BITS or not torch.allclose(exact, weight, rtol=2**-8, atol=1e-7):
        raise ValueError("AutoRound: its weights are not (q − z)·s with 4-bit q; its way of leaving them has changed")
    return exact


def autoround(model: Path, windows: Tensor, *, iters: int, **compiling: bool) -> Made:
    """AutoRound's rounding by signed gradients; it compiles its steps unless told not to."""
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    settings = {"iters": iters, "batch_size": 8, **compiling}
    loaded, clock = _load(model), Clock()
    rows = [{name: tensor[None] for name, tensor in row.items()} for row in _rows(windows)]
    with clock.running():
        program = AutoRound(
            loaded, AutoTokenizer.from_pretrained(model), bits=BITS, group_size=GROUP, sym=False, dataset=rows,
            nsamples=len(windows), seqlen=windows.shape[1], device_map=0 if device() == "cuda" else "cpu", **settings,
        )  # fmt: skip
        made, _ = program.quantize()
    return Made(_gathered(made, _autoround_weight), clock.elapsed_s, settings, ["auto-round"])


def _compressor_weight(layer: Any) -> Tensor:
    """llm-compressor leaves the weight as it was (AWQ) or rounded (GPTQ); its own function gives the codes to store."""
    from compressed_tensors.quantization.lifecycle.forward import quantize

    if getattr(layer, "weight_g_idx", None) is not None:
        raise ValueError("llm-compressor: groups in an order of their own (weight_g_idx), which nothing here reads")
    scales, zeros = layer.weight_scale, layer.weight_zero_point
    codes = quantize(layer.weight, scales, zeros, layer.quantization_scheme.weights)
    return dequantized(*(tensor.cpu() for tensor in (codes, zeros, scales)))


def llmcompressor(model: Path, windows: Tensor, *, modifiers: tuple[str, ...]) -> Made:
    """llm-compressor's `oneshot` with AWQ's scales, GPTQ's rounding, or one after the other."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from torch.utils.data import DataLoader

    if device() == "cpu":  # it pins memory for a GPU without asking whether there is one
        IntermediatesCache.pin_memory = lambda *_: None
    args = QuantizationArgs(num_bits=BITS, symmetric=False, strategy="group", group_size=GROUP, type="int")
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    rounding = GPTQModifier if "gptq" in modifiers else QuantizationModifier
    recipe = [AWQModifier()] if "awq" in modifiers else []
    recipe.append(rounding(config_groups={"all": scheme}, ignore=["lm_head"]))
    loaded, clock = _load(model).to(device()), Clock()
    with clock.running():
        oneshot(
            model=loaded, dataset=DataLoader(_rows(windows), batch_size=1), recipe=recipe,
            max_seq_length=windows.shape[1], num_calibration_samples=len(windows),
        )  # fmt: skip
    settings = {"modifiers": [type(modifier).__name__ for modifier in recipe]}
    with torch.no_grad():
        weights = _gathered(loaded, _compressor_weight)
    return Made(weights, clock.elapsed_s, settings, ["llmcompressor", "compressed-tensors"])


_PROGRAMS: dict[str, Callable[[Path, Tensor], Made]] = {
    "lmdeploy": partial(lmdeploy, search=False),
    "lmdeploy-search": partial(lmdeploy, search=True),
    "llmcompressor-rtn": partial(llmcompressor, modifiers=()),  # near our own `rtn`: a check
    "llmcompressor-awq": partial(llmcompressor, modifiers=("awq",)),
    "llmcompressor-gptq": partial(llmcompressor, modifiers=("gptq",)),
    "llmcompressor-awq-gptq": partial(llmcompressor, modifiers=("awq", "gptq")),
}
AUTOROUND = re.compile(r"autoround-(\d+)(-eager)?")
NAMES = [*_PROGRAMS, "autoround-N (iterations)", "autoround-N-eager (where torch.compile cannot run)"]


def program(name: str) -> Callable[[Path, Tensor], Made]:
    """What runs under a name."""
    if match := AUTOROUND.fullmatch(name):
        return partial(autoround, iters=int(match[1]), **({"enable_torch_compile": False} if match[2] else {}))
    if name not in _PROGRAMS:
        raise SystemExit(f"{name}: no such program; there are {', '.join(NAMES)}")
    return _PROGRAMS[name]
