"""The GPU's kernels, run by Triton's interpreter, beside the plain loops that they must equal."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed; pip install triton runs the kernels here")

COMPARE = """
import torch
from compress.quantize.factor import damp_, factorize
from compress.quantize.gptq import gptq
from compress.quantize import gptq as rounding, refine, kernels
from compress.quantize.grid import fit_grid

torch.manual_seed({seed})
x = torch.randn(1024, {columns}) @ torch.randn({columns}, {columns})
x[:, ::29] *= 12
H, W = x.t() @ x / 1024, torch.randn({rows}, {columns})
damp_(H, 0.05)
factor, grid = factorize(H, "here"), fit_grid(W, 4, {group})
plain = gptq(W, factor, grid)
moved = refine.descend(W, H, plain, grid)
fitted = refine.fit_scales(W, H, moved, grid)
rounding.round_block_plainly_, refine.descend_block_plainly_ = kernels.round_columns_, kernels.descend_columns_
assert torch.equal(gptq(W, factor, grid), plain)
assert torch.equal(refine.descend(W, H, plain, grid), moved)
assert not torch.equal(plain, moved)
refine.fit_group_plainly_ = kernels.fit_group_
again = refine.fit_scales(W, H, moved, grid)
assert not torch.equal(grid.scales, fitted.scales)
assert (again.scales != fitted.scales).float().mean() < 0.01  # sums of other orders, and then the other float16
torch.testing.assert_close(again.scales, fitted.scales, rtol=0.01, atol=0)
"""


@pytest.mark.parametrize(("rows", "columns", "group"), [(40, 256, 128), (33, 96, 32), (8, 64, 64)])
def test_kernels_give_the_plain_loops_codes(rows, columns, group):
    """In a process of its own: Triton reads this variable when it is imported."""
    program = COMPARE.format(seed=rows, rows=rows, columns=columns, group=group)
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
