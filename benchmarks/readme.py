"""Puts the measured figures into README.md: each stands between `<!-- NAME … -->` and `<!-- end -->`.

    python benchmarks/readme.py        # after reports/ or benchmarks/results/ have changed

A test renders the page again and compares, so a figure that no file backs cannot stand there.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.summary import markdown

ROOT = Path(__file__).parents[1]
SECTION = re.compile(r"(<!-- (\w+)[^>]*-->)(.*?)(<!-- end -->)", re.DOTALL)


def _read(path: str) -> Any:
    return json.loads((ROOT / path).read_text("utf8"))


def _table() -> str:
    return "\n" + markdown(_read("reports/summary.json"))


def _recipes() -> str:
    head = (
        "| recipe | perplexity | KL, nats | top-1 as base | of rtn's KL closed |\n| --- | ---: | ---: | ---: | ---: |\n"
    )
    rows = [
        f"| {row['recipe']} | {row['perplexity']:.3f} | {row['kl_nats']:.4f} | {100 * row['top1_agreement']:.1f} % "
        f"| {100 * row['closed_of_rtn']:.0f} % |\n"
        for row in _read("benchmarks/results/demo_recipes.json")
    ]
    return "\n" + head + "".join(rows)


def _engine() -> str:
    return f"{max(abs(row['difference_nats']) for row in _read('benchmarks/results/turbomind.json')):.5f}"


def _repro() -> str:
    run = _read("benchmarks/results/demo_pipeline.json")["make_repro"]
    return f"{run['elapsed_s'] / 60:.1f} minutes and {run['peak_bytes'] / 2**30:.1f} GiB"


def _switches() -> str:
    found = _read("benchmarks/results/shipping.json")
    exports = [entry for entry in found["kills"].values() if isinstance(entry, dict)]
    registered = found["register kills"]
    misses = found["switches"]["misses"] + sum(entry["misses"] for entry in exports) + registered["half_visible"]
    kills = sum(entry["kills"] for entry in exports) + registered["killed"]
    met = "no reader met half a model" if misses == 0 else f"readers met half a model {misses} times"
    return (
        f"{found['switches']['switches']:,} switches under a reading loop and {kills} kills at random points of "
        f"exporting (a folder, OpenSSH, S3) and registering, {met}"
    )


def _replay() -> str:
    return f"{_read('benchmarks/results/replay.json')['times_smaller']:.0f}"


SECTIONS: dict[str, Callable[[], str]] = {
    "table": _table,
    "recipes": _recipes,
    "engine": _engine,
    "repro": _repro,
    "switches": _switches,
    "replay": _replay,
}


def render(text: str) -> str:
    """The page with every section made anew."""
    return SECTION.sub(lambda match: match[1] + SECTIONS[match[2]]() + match[4], text)


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(render(page.read_text("utf8")), "utf8")
