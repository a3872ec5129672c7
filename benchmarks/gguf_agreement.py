"""Does llama.cpp get from a GGUF file what our unpacked weights say?

    python benchmarks/gguf_agreement.py data/evaluation/windows.safetensors models/base models/awq-w4 …

Two questions, kept apart. What the format loses: the file's weights, read back, in our own float32 forward pass. What
the engine loses besides (it rounds activations, to 8 bits before 4-bit weights): llama.cpp's server, told the same
token ids, one position after the other, for the whole distribution of the next token. Both against the unpacked
weights of the folder: mean NLL, KL from ours, the share of positions with the same likeliest token. Writes
benchmarks/results/gguf.json. One thread. Needs `pip install 'turbopress[llama-cpp]'`.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parent))

import torch
import typer
from artifact import digest
from safetensors.torch import load_file

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.gguf.read import read_weights
from compress.gguf.write import export

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "gguf.json"


@contextmanager
def server(file: Path, port: int):
    """The address of `turbopress serve FILE --engine llama.cpp`, while it runs."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(file), "--engine", "llama.cpp", "--port", str(port)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise SystemExit(f"{file}: was not served")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def engine_log_probabilities(address: str, ids: list[int], vocabulary: int) -> torch.Tensor:
    """llama.cpp's distribution behind each but the last of the ids: (positions, vocabulary), in nats."""
    return torch.stack([_next(address, ids[:end], vocabulary) for end in range(1, len(ids))])


def _next(address: str, ids: list[int], vocabulary: int) -> torch.Tensor:
    body = {"prompt": ids, "n_predict": 1, "n_probs": vocabulary, "temperature": 0, "cache_prompt": True}
    asked = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked) as answer:
        (position,) = json.load(answer)["completion_probabilities"]
    found = torch.full((vocabulary,), float("nan"))
    for token in position["top_logprobs"]:
        found[token["id"]] = token["logprob"]
    if found.isnan().any():
        raise SystemExit(f"{address}: {int(found.isnan().sum())} tokens have no probability")
    return found.double().log_softmax(-1).float()  # said in float32, so the shares add up to 1 only about


@torch.no_grad()
def our_log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    """The same from a model in this process."""
    return model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)


def compared(ours: torch.Tensor, theirs: torch.Tensor, ids: list[int]) -> dict[str, torch.Tensor]:
    """Per position: both NLLs, KL(ours ‖ theirs), and whether both would say the same."""
    target = torch.tensor(ids[1:])[:, None]
    return {
        "nll_nats": -ours.gather(1, target)[:, 0],
        "their_nll_nats": -theirs.gather(1, target)[:, 0],
        "kl_nats": (ours.exp() * (ours - theirs)).sum(-1),
        "top1": (ours.argmax(-1) == theirs.argmax(-1)).float(),
    }


def mean(scores: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Over all positions of all windows."""
    whole = {key: torch.cat([one[key] for one in scores]).double().mean().item() for key in scores[0]}
    return {
        "nll_nats": whole["their_nll_nats"],
        "difference_nats": whole["their_nll_nats"] - whole["nll_nats"],
        "kl_nats": whole["kl_nats"],
        "top1_agreement": whole["top1"],
    }


def measure(folder: Path, windows: list[list[int]], port: int, work: Path) -> dict[str, Any]:
    """One row of the result."""
    file = work / f"{folder.name}.gguf"
    written, checkpoint = export(folder, file, folder.name), Checkpoint(folder)
    model, vocabulary = load_model(folder), int(checkpoint.config.fields["vocab_size"])
    ours = [our_log_probabilities(model, ids) for ids in windows]
    model.load_state_dict(read_weights(file, checkpoint), strict=False)
    of_file = [our_log_probabilities(model, ids) for ids in windows]
    with server(file, port) as address:
        of_engine = [engine_log_probabilities(address, ids, vocabulary) for ids in windows]

    def against(theirs: list[torch.Tensor]) -> dict[str, float]:
        return mean([compared(*three) for three in zip(ours, theirs, windows, strict=True)])

    return {
        "model": folder.name,
        "artifact": digest(folder),
        "file_bytes": file.stat().st_size,
        "folder_bytes": sum(part.stat().st_size for part in folder.glob("*.safetensors")),
        "bits_per_linear_weight": written.bits_per_linear_weight,
        "bits_per_weight": written.bits_per_weight,
        "weights_by_type": written.types,
        "groups": written.rounded.groups,
        "groups_with_a_moved_zero": written.rounded.moved,
        "worst_move_steps": written.rounded.worst_steps,
        "unpacked_nll_nats": against(ours)["nll_nats"],
        "file_in_our_forward": against(of_file),
        "llama_cpp": against(of_engine),
    }


def main(
    windows: Path,
    models: list[Path],
    count: Annotated[int, typer.Option(help="windows of the corpus")] = 12,
    port: int = 24600,
) -> None:
    """Measures the folders and writes the result."""
    torch.set_num_threads(1)
    tokens = load_file(windows)["tokens"][:count].tolist()
    with tempfile.TemporaryDirectory() as work:
        rows = [measure(folder, tokens, port, Path(work)) for folder in models]
    versions = {name: importlib.metadata.version(name) for name in ("gguf", "xllamacpp", "torch")}
    value = {"versions": versions, "windows": len(tokens), "tokens_a_window": len(tokens[0]), "models": rows}
    RESULT.write_text(json.dumps(value, indent=2) + "\n", "utf8")
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    typer.run(main)
