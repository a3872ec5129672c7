"""Models of random weights in real shapes and any format, made in a process that gives its GPU back when it ends."""

import subprocess
import sys
from pathlib import Path

MAKER = """
import pathlib, sys, torch, format_speed
torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
format_speed.write_model(pathlib.Path(sys.argv[1]), *sys.argv[2:4], pathlib.Path(sys.argv[4]))
"""


def make(folder: Path, weights: str, shape: str, tokenizer: Path) -> None:
    """Writes the model, with weights and shape as benchmarks/format_speed.py names them."""
    words = [str(folder), weights, shape, str(tokenizer.resolve())]
    subprocess.run([sys.executable, "-c", MAKER, *words], cwd=Path(__file__).parent, check=True)
