"""The table of docs/quantizing.md: what each ingredient of the quantizer is worth."""

from typing import Any

from readme_engine import read, table

WHOLE = "whole"


def ingredients() -> str:
    """A row a variant, a column a domain: the change of divergence, and in how many draws it is certain."""
    rows = read("benchmarks/results/quantizer_ablation.json")
    domains, names = ([*dict.fromkeys(row[key] for row in rows)] for key in ("domain", "recipe"))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["recipe"], row["domain"]), []).append(row)
    lines = [[name, *(_cell(found[name, domain]) for domain in domains)] for name in names]
    return table(["recipe", *domains], len(domains), lines)


def _cell(draws: list[dict[str, Any]]) -> str:
    """The whole recipe's divergence, or the difference from it."""
    if draws[0]["recipe"] == WHOLE:
        return f"{_mean(draws, 'kl_nats'):.4f}"
    certain = sum(row["kl_above_whole_low"] > 0 or row["kl_above_whole_high"] < 0 for row in draws)
    return f"{_mean(draws, 'kl_above_whole'):+.4f} ({certain} of {len(draws)})".replace("-", "−")


def _mean(draws: list[dict[str, Any]], name: str) -> float:
    return float(sum(row[name] for row in draws)) / len(draws)


SECTIONS = {"ingredients": ingredients}
