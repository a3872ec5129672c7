"""TurboMind's own loader takes every format that we offer it, in the layouts and with the mixtures that we allow.

`tests/test_turbomind_engine.py` asks about what the pipeline makes; here the models are small and random.
"""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from formats import write_in_scheme
from tiny import CONFIG, write_internlm2
from turbomind_check import MISSING, PROGRAM, ROOT, ask, interpreter

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
TAKEN += [("wide", scheme, "internlm2", tuple(MIXED), "90") for scheme in ("awq-128", "ct-32", "fp8")]
REFUSED = [("narrow", "fp8", "llama", (), "90"), ("wide", "ct-32", "llama", ("1.mlp.gate_proj", "1.mlp.up_proj"), "90")]
SUPPORTED = """
import sys
from lmdeploy.turbomind.supported_models import is_supported
print(*map(is_supported, sys.argv[1:]))
"""
OTHER_ENGINE = """
import json, sys, types
from lmdeploy.pytorch.config import QuantizationConfig
said = json.load(open(sys.argv[1]))["quantization_config"]
read = QuantizationConfig.from_config(types.SimpleNamespace(quantization_config=said))
print(read.quant_method, read.quant_dtype, read.get_quant_method("model.layers.0.attention.wqkv"))
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


def test_turbomind_leaves_8_bit_whole_numbers_to_the_other_engine(python, write):
    folders = [write("wide", scheme, "internlm2", ()) for scheme in ("ct-32", "fp8", "int8")]
    done = subprocess.run([python, "-c", SUPPORTED, *folders], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-3:] == ["True", "True", "False"]


def test_the_other_engine_reads_our_configuration_of_8_bit_whole_numbers(python, write):
    config = Path(write("wide", "int8", "internlm2", ())) / "config.json"
    done = subprocess.run([python, "-c", OTHER_ENGINE, config], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-3:] == ["smooth_quant", "torch.int8", "smooth_quant"]
    assert json.loads(config.read_text("utf8"))["torch_dtype"] == "float16"
