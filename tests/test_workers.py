"""Two processes quantize one model: each has its share of the windows and of the rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from agreement import MODEL, divergences
from test_resume import LEARNED, content, quantized
from tiny import windows, write_internlm2

from compress.quantize.recipe import AwqRecipe
from compress.quantize.workers import ALONE, Workers

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
sys.path.insert(0, "tests")
from dataclasses import asdict
import json
from pathlib import Path
from test_resume import LEARNED, quantized
from compress.quantize.recipe import AwqRecipe
from compress.quantize.workers import Workers
workers, out = Workers.started(), Path(sys.argv[2])
out.mkdir(exist_ok=True)
errors = quantized(Path(sys.argv[1]), out, AwqRecipe() if sys.argv[3] == "light" else LEARNED, workers=workers)
workers.wait()
if workers.rank == 0:
    Path(sys.argv[2] + ".json").write_text(json.dumps([asdict(error) for error in errors]))
"""


def test_shares_put_together_are_the_whole():
    rows = torch.arange(10)
    assert torch.equal(torch.cat([Workers(rank, 3).share(rows) for rank in range(3)]), rows)
    assert torch.equal(ALONE.gather(ALONE.share(rows), 10), rows)
    assert ALONE.total(7) == 7


@pytest.mark.parametrize("name", ["light", "learned"])
def test_two_processes_make_what_one_makes_but_for_the_order_of_sums(tmp_path, name):
    write_internlm2(tmp_path / "m")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for out in ("two", "again") if name == "light" else ("two",):
        command = [*launch, str(tmp_path / "m"), str(tmp_path / out), name]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert name != "light" or content(tmp_path / "two") == content(tmp_path / "again")
    one = quantized(tmp_path / "m", tmp_path / "one", AwqRecipe() if name == "light" else LEARNED)
    two = json.loads((tmp_path / "two.json").read_text())
    assert [row["linear"] for row in two] == [row.linear for row in one]
    assert all(a["error"] == pytest.approx(b.error, rel=0.05) for a, b in zip(two, one, strict=True))
    lost, lost_by_two, apart = divergences(*(tmp_path / out for out in ("m", "one", "two")), windows(8, seed=3))
    assert lost_by_two == pytest.approx(lost, rel=MODEL)
    assert apart < lost
