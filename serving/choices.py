"""Every way to serve a model on a card, side by side: weights in 16 or 4 bits, bits of KV cache, cache ratios.

`choose` picks for a stated load: the least lossy way that holds it (16-bit weights before 4-bit, a wider cache before a
narrower), with the smallest ratio that is enough, so that the rest of the card stays free for others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from serving import ranks
from serving.memory import MemoryPlan, plan
from serving.profile import EngineProfile, kv_bits
from serving.shape import Shape

WEIGHT_BITS = (16, 4)
RATIOS = (0.2, 0.4, 0.6, 0.8, 0.9)


@dataclass(frozen=True)
class Load:
    """How many sessions there are at once, and of how many tokens each."""

    sessions: int
    length: int


@dataclass(frozen=True)
class Choice:
    """One way to serve, and what it takes."""

    weight_bits: int
    profile: EngineProfile
    plan: MemoryPlan

    @property
    def fits(self) -> bool:
        """Whether the card is large enough and remembers at least one block."""
        return not self.plan.missing_bytes and self.plan.tokens > 0

    def holds(self, load: Load) -> bool:
        """Whether the load fits."""
        return self.fits and self.plan.sessions(load.length) >= load.sessions

    @property
    def flags(self) -> str:
        """How `turbopress serve` is told; the weights' bits are the artifact's."""
        kv = {0: "none", 8: "int8", 4: "int4"}[self.profile.quant_policy]
        return f"--cache {self.profile.cache_max_entry_count:g} --kv {kv} --tp {self.profile.tp}"


def in_4_bits(shape: Shape) -> Shape:
    """The shape of the model's 4-bit variant."""
    return replace(shape, bits=4, quant_method="awq", group_size=128, kept=())


def choices(shape: Shape, profile: EngineProfile, gpu_bytes: int, ratios: Sequence[float] = RATIOS) -> list[Choice]:
    """The whole table, the least lossy first, of what can be served: of a model that is stored in 4 bits no 16-bit
    rows, of one in 16 bits no 4-bit rows where its 4-bit variant would leave the kernels of each GPU too little.
    """
    can_4 = shape.bits == 16 and not ranks.problems(in_4_bits(shape), profile.tp)
    rows = []
    for bits in WEIGHT_BITS if can_4 else (shape.bits,):
        for kv in kv_bits(shape):
            for ratio in ratios:
                told = profile.model_copy(update={"quant_policy": kv, "cache_max_entry_count": ratio})
                rows.append(Choice(bits, told, plan(shape, told, gpu_bytes, bits)))
    return rows


def choose(rows: Sequence[Choice], load: Load) -> Choice | None:
    """The first row that holds the load, or None where none does."""
    return next((row for row in rows if row.holds(load)), None)
