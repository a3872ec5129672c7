"""The loops over columns that rounding is made of, as Triton kernels: a warp owns some outputs and walks the columns.

A column depends on the one before it, but outputs never on each other, so a block of columns of one output stays in
registers while the loop goes over it; what the next column needs from memory is on its way meanwhile. Arithmetic is
that of the plain paths beside which these stand (gptq.py and refine.py): no fused multiply-add, IEEE division, rounding
to even, so that both give the same codes.
"""

# W, state, slope (block, out) a block of columns, transposed · U, H (block, block) · s, z (groups, out) scales and
# zeros · group (block,) each column's group · c (group, out) codes less zeros

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from compress.quantize.grid import SMALLEST_SCALE

OUTPUTS = 8, 16, 32  # of a program, which is one warp, so that no step of the loop waits for another
PROGRAMS = 1024  # that a GPU runs side by side; more of them, and each may as well own more outputs
FITTED = 64  # outputs whose scales one program fits
ROUND = tl.constexpr(12582912.0)  # 1.5 · 2²³: adding and taking it away rounds a float32 below 2²² to even
FURTHEST = tl.constexpr(64.0)  # no code is further from its zero; keeps ROUND exact
LEAST_SCALE = tl.constexpr(SMALLEST_SCALE)
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


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
    state = tl.load(W + at, (columns < n)[:, None] & live[None, :], 0.0)
    of_group = tl.load(group) * num_out + outs
    s, z = tl.load(scales + of_group, live, 1.0), tl.load(zeros + of_group, live, 0.0)
    factor, diagonal = tl.load(U + columns, (columns > 0) & (columns < n), 0.0), tl.load(U)
    for k in range(n):
        after = tl.minimum(k + 1, n - 1)
        of_group = tl.load(group + after) * num_out + outs
        next_s, next_z = tl.load(scales + of_group, live, 1.0), tl.load(zeros + of_group, live, 0.0)
        next_factor = tl.load(U + after * n + columns, (columns > after) & (columns < n), 0.0)
        next_diagonal = tl.load(U + after * n + after)
        w = tl.sum(tl.where(columns[:, None] == k, state, 0.0), 0)
        q = _code(tl.div_rn(w, s), z, top)
        error = tl.div_rn(w - (q - z) * s, diagonal + 0.0 * w)
        tl.store(codes + k * num_out + outs, q, live)
        tl.store(errors + k * num_out + outs, error, live)
        state = state - factor[:, None] * error[None, :]
        s, z, factor, diagonal = next_s, next_z, next_factor, next_diagonal


@triton.jit
def _descend_columns(
    slope, codes, changes, H, scales, group, top, num_out, n: tl.constexpr, N: tl.constexpr, OUT: tl.constexpr
):
    outs = tl.program_id(0) * OUT + tl.arange(0, OUT)
    live = outs < num_out
    columns = tl.arange(0, N)
    at = columns[:, None] * num_out + outs[None, :]
    state = tl.load(slope + at, (columns < n)[:, None] & live[None, :], 0.0)
    s = tl.load(scales + tl.load(group) * num_out + outs, live, 1.0)
    old = tl.load(codes + outs, live, 0.0)
    row, diagonal = tl.load(H + columns, (columns > 0) & (columns < n), 0.0), tl.load(H)
    for k in range(n):
        after = tl.minimum(k + 1, n - 1)
        next_s = tl.load(scales + tl.load(group + after) * num_out + outs, live, 1.0)
        next_old = tl.load(codes + after * num_out + outs, live, 0.0)
        next_row = tl.load(H + after * n + columns, (columns > after) & (columns < n), 0.0)
        next_diagonal = tl.load(H + after * n + after)
        g = tl.sum(tl.where(columns[:, None] == k, state, 0.0), 0)
        step = tl.div_rn(1.0 + 0.0 * s, s * diagonal)
        q = _code(old - g * step, 0.0, top)
        change = (q - old) * s
        tl.store(codes + k * num_out + outs, q, live)
        tl.store(changes + k * num_out + outs, change, live)
        state = state + row[:, None] * change[None, :]
        s, old, row, diagonal = next_s, next_old, next_row, next_diagonal


@triton.jit
def _fit_group(slope, c, curvature, scales, changes, num_out, GROUP: tl.constexpr, OUT: tl.constexpr):
    outs = tl.program_id(0) * OUT + tl.arange(0, OUT)
    live = outs < num_out
    at = tl.arange(0, GROUP)[:, None] * num_out + outs[None, :]
    codes = tl.load(c + at, live[None, :], 0.0)
    along = tl.sum(tl.load(slope + at, live[None, :], 0.0) * codes, 0)
    curve, s = tl.load(curvature + outs, live, 1.0), tl.load(scales + outs, live, 1.0)
    wanted = s - tl.div_rn(along, tl.maximum(curve, TINY))
    moved = tl.maximum(wanted.to(tl.float16).to(tl.float32), LEAST_SCALE) - s
    moved = tl.where((2 * along + curve * moved) * moved < 0, moved, 0.0)
    tl.store(scales + outs, s + moved, live)
    tl.store(changes + at, codes * moved[None, :], live[None, :])


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


def fit_group_(slope: Tensor, c: Tensor, curvature: Tensor, scales: Tensor) -> Tensor:
    """Moves `scales` and returns each column's change: `refine.fit_group_plainly_` on a GPU, but for sums' order."""
    changes, (size, num_out) = torch.empty_like(slope), slope.shape
    _fit_group[(triton.cdiv(num_out, FITTED),)](
        slope, c, curvature, scales, changes, num_out, GROUP=size, OUT=FITTED, num_warps=4, enable_fp_fusion=False
    )
    return changes


def _launch(kernel: Any, state: Tensor, *rest: object) -> None:
    n, num_out = state.shape
    block = max(16, triton.next_power_of_2(n))
    outputs = next((few for few in OUTPUTS if triton.cdiv(num_out, few) <= PROGRAMS), OUTPUTS[-1])
    kernel[(triton.cdiv(num_out, outputs),)](
        state, *rest, num_out, n=n, N=block, OUT=outputs, num_warps=1, enable_fp_fusion=False
    )
