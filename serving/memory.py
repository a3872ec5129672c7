"""How much memory of a GPU LMDeploy 0.18's TurboMind will take, and how many tokens it can then remember.

The engine loads the weights, asks the driver what is free, and takes its share of that for the KV cache; afterwards it
runs prompts of growing length to warm up, and keeps the workspace that the longest needed. So

    total = context + weights + ratio · (card − context − weights) + workspace

The KV cache is exact: the engine's block layout and its slabs. The workspace is the engine's own allocations, recorded
over a grid of shapes, batches and session lengths, in a formula. `benchmarks/memory.py` compares both with a real GPU.
"""

import math
from dataclasses import asdict, dataclass

from serving.errors import ServingError
from serving.gpus import BATCH_OF_OTHERS
from serving.kept import kept_parameters
from serving.profile import EngineProfile
from serving.shape import Shape

MIB = 2**20
BLOCK_TOKENS = 64  # LMDeploy's --cache-block-seq-len
SLAB_BYTES = 32 * MIB  # blocks lie in slabs of this size, doubled until they fill them well
SLAB_FILLING = 0.95
DEFAULT_SESSION = 32768
SCALE_AND_ZERO_BITS = 32  # of a group of 4-bit weights: the engine widens both to 16
KV_SCALE_AND_ZERO_BYTES = 4  # of a token's key or value in one head, where the cache is quantized
CONTEXT_BYTES = 512 * MIB  # CUDA's own, its kernels and cuBLAS: what nvidia-smi shows before anything is allocated


@dataclass(frozen=True)
class MemoryPlan:
    """What one of the profile's GPUs holds; the cache's `tokens` are those of all its sessions together."""

    gpu_bytes: int
    total_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    context_bytes: int
    token_bytes: int  # of KV cache, for one token
    tokens: int

    @property
    def missing_bytes(self) -> int:
        """How much larger the card would have to be; 0 where it is large enough."""
        return max(0, self.total_bytes - self.gpu_bytes)

    def sessions(self, length: int) -> int:
        """Sessions of that many tokens that fit into the cache at once; each takes whole blocks."""
        return self.tokens // (math.ceil(length / BLOCK_TOKENS) * BLOCK_TOKENS)

    def as_dict(self) -> dict[str, int]:
        """For programs."""
        return asdict(self)


def plan(shape: Shape, profile: EngineProfile, gpu_bytes: int, weight_bits: int | None = None) -> MemoryPlan:
    """What the profile takes of a card with `gpu_bytes`; `weight_bits` 4 or 16 asks what the model would be in them."""
    weights = weights_bytes(shape, profile.tp, weight_bits or shape.bits)
    workspace = workspace_bytes(shape, profile)
    free = max(0, gpu_bytes - CONTEXT_BYTES - weights)
    cache = int(free * profile.cache_max_entry_count)
    return MemoryPlan(
        gpu_bytes=gpu_bytes,
        total_bytes=CONTEXT_BYTES + weights + cache + workspace,
        weights_bytes=weights,
        kv_cache_bytes=cache,
        workspace_bytes=workspace,
        context_bytes=CONTEXT_BYTES,
        token_bytes=block_bytes(shape, profile) // BLOCK_TOKENS,
        tokens=cache_tokens(cache, block_bytes(shape, profile)),
    )


def weights_bytes(shape: Shape, tp: int, bits: int) -> int:
    """The weights on one of `tp` GPUs: linears in `bits`; embeddings, head, norms and the linears kept so in 16.

    The scales of 8-bit blocks of 128 × 128 are too few to count.
    """
    if bits not in (4, 8, 16):
        raise ServingError(f"weights of {bits} bits: no engine of ours has them; choose 4, 8 or 16")
    spent = bits + (SCALE_AND_ZERO_BITS / (shape.group_size or 128) if bits == 4 else 0)
    kept = kept_parameters(shape)
    return round(((shape.linear_parameters - kept) * spent / 8 + (shape.other_parameters + kept) * 2) / tp)


def block_bytes(shape: Shape, profile: EngineProfile) -> int:
    """A block of the cache: 64 tokens' keys and values in every layer, with a scale and a zero each if quantized."""
    kv_heads = max(1, shape.kv_heads // profile.tp)
    data = shape.head_dim * (profile.quant_policy or 16) // 8
    parameters = KV_SCALE_AND_ZERO_BYTES if profile.quant_policy else 0
    return shape.layers * kv_heads * 2 * BLOCK_TOKENS * (data + parameters)


def cache_tokens(cache_bytes: int, block: int) -> int:
    """Tokens for which a cache of that many bytes has blocks: whole slabs of whole blocks."""
    slab = SLAB_BYTES
    while slab // block * block < SLAB_FILLING * slab:
        slab *= 2
    return cache_bytes // slab * (slab // block) * BLOCK_TOKENS


def workspace_bytes(shape: Shape, profile: EngineProfile) -> int:
    """What the engine allocates beside weights and cache until it has run its longest batch of prompts.

    T tokens go through a layer at once, h and i are its sizes, q and kv its heads', B sequences have S positions each.
    Two buffers of T·h and two tables of B·S stay; at the peak a layer holds its input, its output, and either both
    halves of the gated product, or queries, keys, values, the attention's output and the keys and values once more.
    """
    B = profile.max_batch_size or BATCH_OF_OTHERS  # whoever knows the card has said it: `batched`
    S = profile.session_len or shape.max_positions or DEFAULT_SESSION
    T = profile.max_prefill_token_num + B
    longest = min(T, S)
    q, kv = (heads * shape.head_dim / profile.tp for heads in (shape.heads, shape.kv_heads))
    stays = 94 * MIB + q / 128 * 2.1 * MIB + 4 * T * shape.hidden + 8 * B * S + 60 * 1024 * B
    peak = 4 * longest * (shape.hidden + max(shape.inter / profile.tp, q + 2 * kv))
    return round(stays + peak)
