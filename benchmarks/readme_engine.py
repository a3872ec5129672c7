"""The README's sections about what LMDeploy's engines answer beside our own weights: proofs, and images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def read(path: str | Path) -> Any:
    """A JSON file of the repository."""
    return json.loads((ROOT / path).read_text("utf8"))


def table(heads: Sequence[str], numbers: int, rows: Sequence[Sequence[str]]) -> str:
    """A table whose last `numbers` columns are set to the right."""
    rule = [" --- "] * (len(heads) - numbers) + [" ---: "] * numbers
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n" + "\n".join(lines) + "\n"


def proven() -> str:
    """What the engine agreed on, of every model that was asked about, and which of them have been made anew since."""
    files = sorted(ROOT.glob("reports/*.conformance.json"))
    names = [file.name.removesuffix(".conformance.json") for file in files]
    reports = [read(f"reports/{name}.json") for name in names]
    now = [read(file)["artifact"] == report["artifact"] for file, report in zip(files, reports, strict=True)]
    made_anew = [name for name, same in zip(names, now, strict=True) if not same]
    since = f"; {', '.join(made_anew)} have been made anew since, on another processor" if made_anew else ""
    return _agreed(files) + since


def seen() -> str:
    """How far LMDeploy's engines and our unpacked weights answer alike about images."""
    rows = read("benchmarks/results/vision.json")
    asked = [row for row in rows if "tokens_until_different" in row]
    engines = " and ".join(dict.fromkeys(f"{row['model']} through the {row['engine']} engine" for row in asked))
    weights = " and ".join(dict.fromkeys(row["weights"] for row in asked))
    same = min(row["tokens_until_different"] for row in asked)
    return (
        f"Asked about {asked[0]['questions']} images each on an {asked[0]['device']}, small random models of "
        f"{engines}, in {weights}, answer as our unpacked weights do for {100 * same:.0f} % of the tokens"
    )


def wide() -> str:
    """The same of models whose heads were widened, so that they take an int4 cache; nothing before a card was asked."""
    files = sorted(ROOT.glob("benchmarks/results/wide/*.conformance.json"))
    told = "The same model written with heads of 128, by [`wide_heads.py`](benchmarks/wide_heads.py), was asked too"
    return f" {told}: {_agreed(files)}." if files else ""


def _agreed(files: list[Path]) -> str:
    """The cases that were asked, at their worst; those that failed are counted."""
    cases = [case for file in files for case in read(file)["cases"]]
    agreed = [case for case in cases if case["passed"]]
    if not agreed:
        return f"it agreed in none of {len(cases)} cases"
    count = f"all {len(cases)}" if len(agreed) == len(cases) else f"{len(agreed)} of {len(cases)}"
    asked = f"in {count} cases (models: {len(files)}, GPUs: {_listed(agreed, 'tp')}"
    ppl, top1 = _worst(agreed)
    return (
        f"{asked}, KV cache: {_listed(agreed, 'kv_bits')} bits) its perplexity is ours to {100 * ppl:.3f} %, its "
        f"likeliest token ours at {100 * top1:.1f} % of positions or more{_further(agreed)}"
        f"{_disagreed([case for case in cases if not case['passed'] and case['perplexity']])}"
    )


def _worst(cases: list[dict[str, Any]]) -> tuple[float, float]:
    """How far perplexities are apart at most, as a share, and at how many positions the likeliest token is ours."""
    ppl = max(abs(case["engine_perplexity"] / case["perplexity"] - 1) for case in cases)
    return ppl, min(case["top1_agreement"] for case in cases)


def _disagreed(cases: list[dict[str, Any]]) -> str:
    """How far apart the others are, at their worst, and what their KV cache costs in the engine and simulated."""
    if not cases:
        return ""
    ppl, top1 = _worst(cases)
    costs, simulated = (max(case[key] for case in cases) for key in ("kl_to_16_nats", "simulated_kl_to_16_nats"))
    return (
        f". With a KV cache of {_listed(cases, 'kv_bits')} bits the proof fails: perplexity is ours to "
        f"{100 * ppl:.2f} %, but the likeliest token is at only {100 * top1:.1f} % of positions, since so coarse a "
        f"step decides near ties; such a cache costs {costs:.4f} nats in the engine, {simulated:.4f} by our simulation"
    )


def _listed(cases: list[dict[str, Any]], name: str) -> str:
    return " and ".join(map(str, sorted({case[name] for case in cases})))


def _further(cases: list[dict[str, Any]]) -> str:
    """What proofs of before there was such a number do not say."""
    if any(case.get("kl_nats") is None or case.get("greedy_margin") is None for case in cases):
        return ""
    kl, margin = (max(case[name] for case in cases) for name in ("kl_nats", "greedy_margin"))
    return (
        f", its KL from ours at most {kl:.1e} nats a token, and where a text it writes first differs from ours, our "
        f"scores of the two tokens are within {margin:.2f}"
    )
