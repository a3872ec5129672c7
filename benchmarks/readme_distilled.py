"""The README's sections about a model cut, distilled and quantized, from benchmarks/results/prune_distill.json."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "prune_distill.json"
DISTILLED_ON = {"demo base": "all", "SmolLM2-135M": "wikitext2"}  # text of another domain than what was trained on
STAGES = "base", "pruned", "distilled", "base-w4", "distilled-w4", "distilled-w4-repaired"


def measured() -> list[dict[str, Any]]:
    """By model, way and stage; in the file those that were measured last come last."""
    models = list(DISTILLED_ON)
    return sorted(
        json.loads(RESULTS.read_text("utf8")),
        key=lambda row: (models.index(row["model"]), row["way"], STAGES.index(row["stage"])),
    )


def table() -> str:
    """A row a way to cut and stage, over the held-out text of `DISTILLED_ON`, with what the stage writes by itself."""
    rows = {(r["model"], r["way"], r["stage"], r["domain"]): r for r in measured()}
    heads = (
        "model",
        "cut",
        "stage",
        "perplexity",
        "KL, nats",
        "won back",
        "of the KL",
        "greedy",
        "drawn",
        "less likely",
    )
    lines, said = [f"| {' | '.join(heads)} |", f"| --- | --- | --- |{' ---: |' * 7}"], set()
    for (model, way, stage, domain), row in rows.items():
        of_base = stage in {"base", "base-w4"}  # the same for every way
        if domain != DISTILLED_ON[model] or (of_base and (model, stage) in said):
            continue
        said.add((model, stage))
        cells = [f"{row['perplexity']:.2f}", f"{row['kl_nats']:.4f}", _won(row, "recovered"), _won(row, "recovered_kl")]
        cells += _written(rows[model, way, stage, "written"])
        lines.append(f"| {model} | {'' if of_base else way} | {stage} | {' | '.join(cells)} |")
    return "\n" + "\n".join(lines) + "\n"


def _won(row: dict[str, Any], name: str) -> str:
    return "" if row[name] is None else share(row, name)


def _written(row: dict[str, Any]) -> list[str]:
    """The shares of 4-grams said twice, greedily and drawn, and how much less likely what was drawn is to the base."""
    rise, low, high = (row[f"sampled_nll_rise_nats{end}"] for end in ("", "_low", "_high"))
    apart = "" if row["stage"] == "base" else f"{rise:.2f} ({low:.2f} to {high:.2f})"
    return [f"{100 * row['repetition']:.0f} %", f"{100 * row['sampled_repetition']:.1f} %", apart]


def quantized_student() -> str:
    """What quantizing the demo's student costs beside quantizing its base, in KL."""
    rows = {r["stage"]: r for r in measured() if (r["model"], r["way"], r["domain"]) == ("demo base", "depth", "all")}
    w4, student, base = (rows[stage]["kl_nats"] for stage in ("distilled-w4", "distilled", "base-w4"))
    said, ends = f"{w4 - student:.4f} nats of KL, where quantizing its base costs {base:.4f}", rows["distilled-w4"]
    low, high = (ends[f"extra_kl_nats_{end}"] for end in ("low", "high"))
    return f"{said}: a difference of {ends['extra_kl_nats']:.4f} ({low:.4f} to {high:.4f})"


def share(row: dict[str, Any], name: str) -> str:
    """A share with its interval, in percent."""
    value, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.0f} % ({low:.0f} to {high:.0f})"


def taught() -> str:
    """The longest training of the real model."""
    rows = measured()
    taught = [r for r in rows if (r["model"], r["stage"], r["domain"]) == ("SmolLM2-135M", "distilled", "wikitext2")]
    row = max(taught, key=lambda row: row["tokens"])
    (own,) = json.loads((RESULTS.parent / "own_words.json").read_text("utf8"))
    return (
        f"{row['elapsed_s']:.0f} seconds on {row['tokens'] / 1e6:.0f} million tokens of speeches, plays and, for the "
        f"most part, {own['windows']:,} windows in its base's own words, written beforehand in {own['elapsed_s']:.0f} s"
        f"{'' if own['alone'] else ' beside other work'}"
    )
