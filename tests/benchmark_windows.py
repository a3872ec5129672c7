"""Token windows of random ids in the files that benchmarks read."""

import sys
from pathlib import Path

from tiny import windows

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))


def write_windows(path, length, **counts):
    """So many windows under each name."""
    from quality_windows import store

    sets = {name: windows(n, length, seed=seed).numpy() for seed, (name, n) in enumerate(counts.items())}
    store(sets, {name: {} for name in sets}, path)
