"""Scores of each window by recipe and domain: what the means, intervals and paired differences of a table come from.

They lie beside the table as one small file, so that a recipe which is measured later, or on another machine, is paired
with all that were measured before: a window's difference from `awq-best` on the same window, over the same draws.
"""

import json
from pathlib import Path

import numpy as np
from quality_windows import digest
from safetensors import safe_open
from safetensors.numpy import save_file

DRAWS = 10_000
BEST = "awq-best"
KINDS = ("kl_nats", "top1", "nll_nats")  # the rows of each array


class Scores:
    """The file at `path`; every recipe in it was made and scored on the same windows."""

    def __init__(self, path: Path, digests: dict[str, str] | None = None):
        self.path, self.digests, self.arrays = path, {}, {}
        if path.exists():
            with safe_open(path, "np") as file:
                self.arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                self.digests = json.loads(file.metadata()["windows"])
        self._same_windows(digests or {})

    @classmethod
    def on(cls, path, windows):
        """The file, for scores of these windows."""
        return cls(path, {name: digest(tokens.numpy()) for name, tokens in windows.items()})

    def put(self, recipe, scores):
        """Replaces a recipe's scores by those of `compare_models` for each domain, with none by nothing, and writes."""
        self.arrays = {name: values for name, values in self.arrays.items() if name.split("/")[0] != recipe}
        for domain, found in scores.items():
            columns = [getattr(found, kind).cpu().numpy() for kind in KINDS]
            self.arrays[f"{recipe}/{domain}"] = np.stack(columns).astype(np.float32)
        self._write()

    def take(self, other):
        """Takes the recipes of another file in, in place of its own of the same names."""
        self._same_windows(other.digests)
        recipes = {name.split("/")[0] for name in other.arrays}
        kept = {name: values for name, values in self.arrays.items() if name.split("/")[0] not in recipes}
        self.arrays = kept | other.arrays
        self._write()

    def complete(self, rows):
        """The rows, with the figures of those whose windows are known; the others, of earlier runs, as they are."""
        return [row | self._figures(row["recipe"], row["domain"]) if row["reason"] is None else row for row in rows]

    def _figures(self, recipe, domain):
        """Means over windows, with 95 % intervals by a bootstrap over them; the same draws for every recipe."""
        found = self.arrays.get(f"{recipe}/{domain}")
        if found is None:
            return {}
        kl, top1, nll = found.astype(np.float64)
        low, high = interval(kl)
        row = {"kl_nats": float(kl.mean()), "kl_low": low, "kl_high": high}
        best = self.arrays.get(f"{BEST}/{domain}")
        if best is not None and recipe != BEST:
            less = kl - best[0]
            low, high = interval(less)
            row |= {"kl_above_best": float(less.mean()), "kl_above_best_low": low, "kl_above_best_high": high}
        return row | {
            "top1": float(top1.mean()), "perplexity": float(np.exp(nll.mean())), "windows": self.digests[domain][:16],
        }  # fmt: skip

    def _same_windows(self, digests):
        """Notes the windows of a name that is new, refuses others under a name that has scores."""
        for name in sorted(digests.keys() & self.digests.keys()):
            if digests[name] != self.digests[name]:
                raise SystemExit(
                    f"{self.path}: holds scores of {name} {self.digests[name][:16]}, not {digests[name][:16]}; "
                    "give the same --windows, or another --out"
                )
        self.digests = {**self.digests, **digests}

    def _write(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        said = {"windows": json.dumps(self.digests, sort_keys=True)}  # one entry: several would come in any order
        save_file(self.arrays, self.path, said)


def interval(values):
    draws = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)
