"""The loops over columns that rounding is made of, as Triton kernels: a thread owns an output and walks the columns.

A column depends on the one before it, but outputs never on each other, so a block of columns of one output stays in
registers while the loop goes over it. Arithmetic is that of the plain paths beside which these stand (gptq.py and
refine.py): no fused multiply-add, IEEE division, rounding to even, so that both give the same codes.
"""

# W, state (block, out) a block of columns, transposed · U, H (block, block) · s, z (groups, out) scales and zeros
# group (block,) each column's group

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

OUTPUTS = 32  # of a program: one a thread, so that no step of the loop waits for another warp
ROUND = tl.constexpr(12582912.0)  # 1.5 · 2²³: adding and taking it away rounds a float32 below 2²² to even
FURTHEST = tl.constexpr(64.0)  # no code is further from its zero; keeps ROUND exact


@triton.jit
def _code(x, zero, top):
    """The code nearest to x steps from the zero."""
    x = tl.minimum(tl.maximum(x, -FURTHEST), FURTHEST)
    return tl.minimum(tl.maximum((x + ROUND) - ROUND + zero, 0.0), top)


@triton.jit
def _round_columns(
    W, codes, errors, U, scales, zeros, group, top, num_out, n: tl.constexpr, N: tl.constexpr, OUT: tl.constexpr
):
    outs = tl.program_id(0) * OUT + tl.arange(0, OUT)
    live = outs < num_out
    columns = tl.arange(0, N)
    at = columns[:, None] * num_out + outs[None, :]
    inside = (columns < n)[:, None] & live[None, :]
    state = tl.load(W + at, inside, 0.0)
    for k in range(n):
        w = tl.sum(tl.where(columns[:, None] == k, state, 0.0), 0)
        of_group = tl.load(group + k) * num_out + outs
        s, z = tl.load(scales + of_group, live, 1.0), tl.load(zeros + of_group, live, 0.0)
        q = _code(tl.div_rn(w, s), z, top)
        error = tl.div_rn(w - (q - z) * s, tl.load(U + k * n + k) + 0.0 * w)
        tl.store(codes + k * num_out + outs, q, live)
        tl.store(errors + k * num_out + outs, error, live)
        factor = tl.load(U + k * n + columns, (columns > k) & (columns < n), 0.0)
        state = state - factor[:, None] * error[None, :]


@triton.jit
def _descend_columns(
    slope, codes, changes, H, scales, group, top, num_out, n: tl.constexpr, N: tl.constexpr, OUT: tl.constexpr
):
    outs = tl.program_id(0) * OUT + tl.arange(0, OUT)
    live = outs < num_out
    columns = tl.arange(0, N)
    at = columns[:, None] * num_out + outs[None, :]
    state = tl.load(slope + at, (columns < n)[:, None] & live[None, :], 0.0)
    for k in range(n):
        g = tl.sum(tl.where(columns[:, None] == k, state, 0.0), 0)
        s = tl.load(scales + tl.load(group + k) * num_out + outs, live, 1.0)
        old = tl.load(codes + k * num_out + outs, live, 0.0)
        step = tl.div_rn(1.0 + 0.0 * s, s * tl.load(H + k * n + k))
        q = _code(old - g * step, 0.0, top)
        change = (q - old) * s
        tl.store(codes + k * num_out + outs, q, live)
        tl.store(changes + k * num_out + outs, change, live)
        row = tl.load(H + k * n + columns, (columns > k) & (columns < n), 0.0)
        state = state + row[:, None] * change[None, :]


def round_columns_(
    W: Tensor, codes: Tensor, U: Tensor, scales: Tensor, zeros: Tensor, group: Tensor, top: int
) -> Tensor:
    """Fills `codes` and returns each column's error over its diagonal: `gptq.round_block_plainly_` on a GPU."""
    errors = torch.empty_like(W)
    _launch(_round_columns, W, codes, errors, U.contiguous(), scales, zeros, group, top)
    return errors


def descend_columns_(slope: Tensor, codes: Tensor, H: Tensor, scales: Tensor, group: Tensor, top: int) -> Tensor:
    """Moves `codes` and returns each column's change: `refine.descend_block_plainly_` on a GPU."""
    changes = torch.empty_like(slope)
    _launch(_descend_columns, slope, codes, changes, H.contiguous(), scales, group, top)
    return changes


def _launch(kernel: Any, state: Tensor, *rest: object) -> None:
    n, num_out = state.shape
    block = max(16, triton.next_power_of_2(n))
    kernel[(triton.cdiv(num_out, OUTPUTS),)](
        state, *rest, num_out, n=n, N=block, OUT=OUTPUTS, num_warps=1, enable_fp_fusion=False
    )
