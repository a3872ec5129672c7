"""`turbopress conformance`: does TurboMind, on a GPU, get from an artifact what our unpacked weights say?"""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.folders import model_folder
from pipelines.params import ParamsError
from pipelines.stage import fresh_file, run
from registry.conformance import SUFFIX, Case

LAYOUTS = ("llama", "internlm2")
KV_BITS = (16, 8, 4)
WINDOWS = Path("data/evaluation")


def conformance(
    models: Annotated[list[str], typer.Argument(help="folders, variants or NAME@ALIAS")],
    windows: Annotated[Path, typer.Option(help="the evaluation corpus")] = WINDOWS,
    reports: Annotated[Path, typer.Option(help="where the proof goes, beside the report")] = Path("reports"),
    kv: Annotated[str, typer.Option(help="bits of the KV cache, 16, 8 and 4")] = "16,8,4",
    tp: Annotated[str, typer.Option(help="numbers of GPUs")] = "1,2",
    layout: Annotated[str, typer.Option(help="llama, internlm2 or both")] = "llama,internlm2",
) -> None:
    """Prove on a GPU that TurboMind agrees with our unpacked weights: perplexity within 0.5 %, top-1 at least 99 %."""
    from compress.corpus import load_windows  # noqa: PLC0415 - the other commands need none
    from pipelines.proof import prove  # noqa: PLC0415 - torch is slow to import

    if unknown := set(layout.split(",")) - set(LAYOUTS):
        raise ParamsError(f"--layout: {', '.join(sorted(unknown))}; choose llama, internlm2 or both with a comma")
    bits, ranks, read = _numbers(kv, "--kv"), _numbers(tp, "--tp"), load_windows(windows)
    if unknown_bits := set(bits) - set(KV_BITS):
        raise ParamsError(f"--kv: {', '.join(map(str, sorted(unknown_bits)))}; choose of 16, 8 and 4")
    failed = []
    for model in models:
        proof = prove(model_folder(model), read, layout.split(","), bits, ranks)  # type: ignore[arg-type]  # as checked
        out = reports / f"{Path(model).name}{SUFFIX}"
        with fresh_file(out) as file:
            file.write_text(proof.model_dump_json(indent=2) + "\n", "utf8")
        for case in proof.cases:
            print(f"{model}, {_told(case)}", flush=True)
        for reason in proof.refused:
            print(f"{model}, left out: {reason}", flush=True)
        failed += [] if proof.passed else [model]
    if failed:
        raise ParamsError(f"conformance: the engine disagrees on {', '.join(failed)}; see {reports}/*{SUFFIX}")


def _numbers(text: str, flag: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ParamsError(f"{flag}: {text}; write numbers with commas, as 16,8,4") from None


def _told(case: Case) -> str:
    what = f"layout {case.layout}, KV {case.kv_bits}, tp {case.tp}"
    if case.perplexity is None or case.engine_perplexity is None or case.top1_agreement is None:
        return f"{what}: {case.reason}"
    figures = (
        f"perplexity {case.engine_perplexity:.4f} (ours {case.perplexity:.4f}), top-1 {100 * case.top1_agreement:.2f} %"
    )
    return f"{what}: {figures}, {'agrees' if case.passed else 'DISAGREES'}"


if __name__ == "__main__":  # a machine with a GPU may lack what the other commands import
    run(conformance)
