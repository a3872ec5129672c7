"""TurboMind's own loader takes every format that we offer it, in the layouts and with the mixtures that we allow.

`tests/test_turbomind_engine.py` asks about what the pipeline makes; here the models are small and random.
"""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from formats import packed, write_in_scheme
from safetensors.torch import load_file, save_file
from tiny import CONFIG, write_internlm2
from turbomind_check import MISSING, PROGRAM, ROOT, ask, interpreter, other_engine

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.tokenizer import write_tokenizer
from compress.quantize.turbomind import Weights, problems

TOKENIZER = ROOT / "examples" / "demo" / "base"
SIZES = {"vocab_size": 6144, "max_position_embeddings": 512, "num_hidden_layers": 2}
WIDE = CONFIG | SIZES | {"hidden_size": 512, "intermediate_size": 1024}  # heads of 128
NARROW = (
    CONFIG | SIZES | {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
)
MIXED = ["0.self_attn.o_proj", "1.self_attn.q_proj", "1.self_attn.k_proj", "1.self_attn.v_proj", "1.mlp.down_proj"]
FORMATS = {
    "awq-128": ("awq", 128),
    "ct-32": ("compressed-tensors", 32),
    "ct-128": ("compressed-tensors", 128),
    "fp8": ("fp8", 128),
}
BOTH = ("llama", "internlm2")
# Configuration, scheme, layout, linears in 16 bits, compute capability.
TAKEN = [("wide", scheme, layout, (), gpu) for scheme in ("ct-32", "fp8") for layout in BOTH for gpu in ("80", "90")]
TAKEN += [("wide", "ct-128", "internlm2", (), "90"), ("narrow", "ct-32", "internlm2", (), "90")]
TAKEN += [("wide", scheme, "internlm2", tuple(MIXED), "90") for scheme in ("awq-128", "ct-32")]
REFUSED = [("narrow", "fp8", "llama", (), "90"), ("wide", "ct-32", "llama", ("1.mlp.gate_proj", "1.mlp.up_proj"), "90")]
SUPPORTED = """
import sys
from lmdeploy.turbomind.supported_models import is_supported
print(*map(is_supported, sys.argv[1:]))
"""
OTHER_ENGINE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import ftc
import torch
from lmdeploy.pytorch.config import ModelConfig
from lmdeploy.pytorch.models.patch import BuildModelContext, build_patched_model
from lmdeploy.pytorch.weight_loader.model_weight_loader import load_model_weights
config = ModelConfig.from_pretrained(sys.argv[2], device_type="cuda")
model = build_patched_model(config, device="cpu", build_model_ctx=BuildModelContext(quant_config=config.quant_config))
load_model_weights(model, sys.argv[2], device="cpu")
layer = model.model.layers[1]
fused = layer.attention.wqkv if hasattr(layer, "attention") else layer.self_attn.qkv_proj
norm = layer.attention_norm if hasattr(layer, "attention") else layer.input_layernorm
weight = fused.weight.double()
order = torch.arange(1, 1 + weight.numel()).view_as(weight) % 8191
print(json.dumps({
    "method": config.quant_config.quant_method,
    "dtypes": [str(t.dtype) for t in (fused.weight, fused.scale, norm.weight)],
    "sums": [float((weight * order).sum()), float(fused.scale.double().sum())],
    "norm": type(norm.impl).__name__,
}))
"""
NUMBERS = """
import os, sys
sys.path.insert(0, sys.argv[1])
import ftc
import torch
from safetensors.torch import load_file, save_file
from lmdeploy.turbomind import weight_format as formats
from lmdeploy.turbomind.builders.linear import _build_linear
known = {
    "awq-128": formats.AWQFormat(block_in=128), "ct-32": formats.CompressedTensorFormat(block_in=32),
    "ct-128": formats.CompressedTensorFormat(block_in=128), "fp8": formats.FP8Format(block_out=128),
}
read = {}
for scheme, form in known.items():
    stored = {"." + part: tensor for part, tensor in load_file(f"{sys.argv[2]}/{scheme}.safetensors").items()}
    stored.pop(".weight_shape", None)
    assert form.accepts(stored), scheme
    read[scheme] = form.dequant(_build_linear(form, stored).tensors, torch.float32)["weight"].float().t().contiguous()
save_file(read, sys.argv[2] + "/read.safetensors")
os._exit(0)
"""

pytestmark = pytest.mark.skipif(not PROGRAM.is_dir(), reason=MISSING)


@pytest.fixture(scope="module")
def python():
    """The interpreter of an environment with LMDeploy."""
    return interpreter()


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes a case's model, with a tokenizer, once for all GPUs."""
    home, written = tmp_path_factory.mktemp("formats"), {}
    for name, config in (("wide", WIDE), ("narrow", NARROW)):
        write_internlm2(home / name, config)

    def folder(name, scheme, layout, kept):
        if (name, scheme, layout, kept) not in written:
            out = home / f"case-{len(written)}"
            write_in_scheme(home / name, out, scheme, layout, [f"model.layers.{module}" for module in kept])
            write_tokenizer(TOKENIZER, out)
            written[name, scheme, layout, kept] = out
        return written[name, scheme, layout, kept]

    return folder


@pytest.fixture(scope="module")
def verdicts(python, write):
    """All verdicts, asked for two at a time."""
    with ThreadPoolExecutor(2) as pool:
        asked = {case: pool.submit(ask, python, write(*case[:4]), case[4]) for case in [*TAKEN, *REFUSED]}
        return {case: verdict.result() for case, verdict in asked.items()}


def contract(folder, scheme):
    """What our own rules say of a written model."""
    checkpoint = Checkpoint(folder)
    return list(problems(checkpoint.config, checkpoint.layout, Weights(*FORMATS[scheme]), 1))


@pytest.mark.parametrize(
    "case", TAKEN, ids=lambda case: "-".join(map(str, (*case[:3], "mixed" * bool(case[3]), case[4])))
)
def test_turbomind_loads_what_we_offer_it(verdicts, write, case):
    _, scheme, _, _, _ = case
    verdict = verdicts[case]
    assert verdict["ok"], verdict
    assert verdict["dtype"] == ("bfloat16" if scheme == "fp8" else "float16")
    assert contract(write(*case[:4]), scheme) == []


def test_turbomind_does_not_load_what_we_refuse(verdicts, write):
    """Edge blocks are refused by the contract; gate and up without down are no choice of `keep`."""
    edge, torn = REFUSED
    assert verdicts[edge]["ok"] is False
    assert contract(write(*edge[:4]), "fp8") != []
    assert verdicts[torn]["ok"] is False


def test_turbomind_unpacks_the_numbers_that_we_packed(python, tmp_path):
    W = torch.randn(256, 384, generator=torch.Generator().manual_seed(5))
    W[7, 30] = 9
    expected = {}
    for scheme in FORMATS:
        stored, expected[scheme] = packed(W, scheme)
        save_file({part: tensor.contiguous() for part, tensor in stored.items()}, tmp_path / f"{scheme}.safetensors")
    log = {"FAKE_CC": "90", "FAKE_CUDA_LOG": str(tmp_path / "kernels"), "LD_LIBRARY_PATH": str(PROGRAM / "lib")}
    command = [python, "-c", NUMBERS, PROGRAM, tmp_path]
    done = subprocess.run(command, env=os.environ | log, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    read = load_file(tmp_path / "read.safetensors")
    for scheme, weight in expected.items():
        # The engine multiplies codes by scales in float16.
        assert torch.allclose(read[scheme], weight, rtol=0 if scheme == "fp8" else 1e-3, atol=1e-7), scheme


def test_turbomind_leaves_8_bit_whole_numbers_to_the_other_engine(python, write):
    folders = [write("wide", scheme, "internlm2", ()) for scheme in ("ct-32", "fp8", "int8")]
    done = subprocess.run([python, "-c", SUPPORTED, *folders], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-3:] == ["True", "True", "False"]


@pytest.mark.parametrize("layout", BOTH)
def test_the_other_engine_loads_our_8_bit_whole_numbers_as_they_are(python, write, layout):
    folder = write("wide", "int8", layout, ())
    environment = os.environ | {"PYTHONPATH": str(other_engine(python)), "HF_HUB_OFFLINE": "1"}
    command = [python, "-c", OTHER_ENGINE, PROGRAM, folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = json.loads(done.stdout.splitlines()[-1])
    checkpoint = Checkpoint(folder)
    weight, scale = (
        torch.cat([checkpoint.tensor(f"model.layers.1.self_attn.{x}_proj.{part}") for x in "qkv"]).double()
        for part in ("weight", "scale")
    )
    assert loaded["method"] == "smooth_quant"
    assert loaded["dtypes"] == ["torch.int8", "torch.float32", "torch.float16"]
    order = torch.arange(1, 1 + weight.numel()).view_as(weight) % 8191  # so that no row or column is out of its place
    assert loaded["sums"] == [float((weight * order).sum()), pytest.approx(float(scale.sum()), rel=1e-6)]
    assert loaded["norm"] == "TritonRMSNormW8A8Impl"  # it rounds what it hands to the linears
