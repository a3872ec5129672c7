"""`turbopress conformance`: does TurboMind, on a GPU, get from an artifact what our unpacked weights say?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipelines.folders import model_folder
from pipelines.params import ParamsError
from pipelines.stage import fresh_file, run
from registry.conformance import SUFFIX, Case, merged, read_proof
from serving.gpus import Gpu, gpus

LAYOUTS = ("llama", "internlm2")
WHOLE = 16  # bits of a KV cache that is not quantized
KV_BITS = (WHOLE, 8, 4)
TENSOR_PARALLEL = (1, 2)
Ways = tuple[Sequence[str], Sequence[int], Sequence[int]]  # layouts, bits, GPUs
WINDOWS = Path("data/evaluation")


def conformance(
    models: Annotated[list[str], typer.Argument(help="folders, variants or NAME@ALIAS")],
    windows: Annotated[Path, typer.Option(help="the evaluation corpus")] = WINDOWS,
    reports: Annotated[Path, typer.Option(help="where the proof goes, beside the report")] = Path("reports"),
    kv: Annotated[str, typer.Option(help="bits of the KV cache, 16, 8 and 4")] = "16,8,4",
    tp: Annotated[str | None, typer.Option(help="numbers of GPUs; 1, and 2 where there are two, unless given")] = None,
    layout: Annotated[str, typer.Option(help="llama, internlm2 or both")] = "llama,internlm2",
) -> None:
    """Prove on a GPU that TurboMind agrees with our unpacked weights: perplexity within 0.5 %, top-1 at least 99 %.

    What it writes by itself is judged too: where a text first differs from ours, its token is within 0.25 nats of ours,
    unless the KV cache has 4 bits.

    Ways to serve that an earlier call has asked of the same bytes stay in the file.
    """
    layouts, bits = layout.split(","), _numbers(kv, "--kv")
    if unknown := set(layouts) - set(LAYOUTS):
        raise ParamsError(f"--layout: {', '.join(sorted(unknown))}; choose llama, internlm2 or both with a comma")
    if unknown_bits := set(bits) - set(KV_BITS):
        raise ParamsError(f"--kv: {', '.join(map(str, sorted(unknown_bits)))}; choose of 16, 8 and 4")
    asked = None if tp is None else _numbers(tp, "--tp")
    cards = _gpus(max(asked or [1]))
    ranks = asked or [n for n in TENSOR_PARALLEL if n <= len(cards)]
    files = {model: reports / f"{Path(model).name}{SUFFIX}" for model in models}
    for file in files.values():
        read_proof(file)  # what cannot be added to is refused before the work
    ways = layouts, bits, ranks
    failed = [model for model, file in files.items() if not _proven(model, file, windows, ways, cards[0].name)]
    if failed:
        raise ParamsError(f"conformance: the engine disagrees on {', '.join(failed)}; see {reports}/*{SUFFIX}")


def _gpus(most: int) -> list[Gpu]:
    """The GPUs here; refused where there are fewer than the engine would be told to use."""
    cards = gpus()
    if not cards:
        raise ParamsError("conformance: there is no GPU here, and the engine needs one; run it where there is")
    if len(cards) < most:
        raise ParamsError(f"--tp {most}: GPUs here are {len(cards)}; run it where there are {most}, or ask for less")
    return cards


def _proven(model: str, file: Path, windows: Path, ways: Ways, card: str) -> bool:
    """Whether the engine agreed on every case; each is told, and lies in the file, as soon as it is through."""
    from compress.corpus import load_windows  # noqa: PLC0415 - the other commands need none
    from pipelines.proof import prove  # noqa: PLC0415 - torch is slow to import

    passed, refused = True, list[str]()
    for proof in prove(model_folder(model), load_windows(windows), *ways, card):  # type: ignore[arg-type]  # checked
        with fresh_file(file) as fresh:
            fresh.write_text(merged(read_proof(file), proof).model_dump_json(indent=2) + "\n", "utf8")
        print(f"{model}, {_told(proof.cases[0])}", flush=True)
        passed, refused = passed and proof.passed, proof.refused
    for reason in refused:
        print(f"{model}, left out: {reason}", flush=True)
    return passed


def _numbers(text: str, flag: str) -> list[int]:
    """The numbers of an option; those of GPUs and of bits are at least 1."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ParamsError(f"{flag}: {text}; write numbers with commas, as 16,8,4")
    return found


def _told(case: Case) -> str:
    """A case in one line."""
    if case.perplexity is None or case.engine_perplexity is None or case.top1_agreement is None:
        return f"{case.way}: {case.reason}"
    figures = [
        f"perplexity {case.engine_perplexity:.4f} (ours {case.perplexity:.4f})",
        f"top-1 {100 * case.top1_agreement:.2f} %",
        f"greedy {100 * (case.greedy_agreement or 0):.2f} % (at most {case.greedy_margin:.3f} logits apart)",
        f"KL {case.kl_nats:.1e} nats",
    ]
    if case.kv_bits < WHOLE:
        cost = f"{case.kl_to_16_nats:.1e} nats (simulated {case.simulated_kl_to_16_nats:.1e})"
        figures.append(f"its KV cache costs {cost}")
    return f"{case.way}: {', '.join(figures)}, {'agrees' if case.passed else 'DISAGREES'}"


if __name__ == "__main__":  # a machine with a GPU may lack what the other commands import
    run(conformance)
