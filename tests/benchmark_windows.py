"""Token windows of random ids in the files that benchmarks read."""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tiny import windows

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))


def write_windows(path, length, **counts):
    """So many windows under each name."""
    from quality_windows import digest

    sets = {
        name: windows(n, length, seed=seed).numpy().astype(np.uint16) for seed, (name, n) in enumerate(counts.items())
    }
    save_file(sets, path)
    path.with_suffix(".json").write_text(json.dumps({name: {"sha256": digest(w)} for name, w in sets.items()}))
