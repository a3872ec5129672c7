"""`gate:` of params.yaml: what a candidate must show before `turbopress promote` moves an alias to it."""

from itertools import product
from typing import Literal

from pydantic import Field

from compress.strict import Strict
from registry.conformance import Way

Opponent = Literal["base", "champion"]


class Limit(Strict):
    """A bound, and whom the candidate is held against; of an interval the worse end must keep it."""

    limit: float = Field(allow_inf_nan=False)
    against: Opponent = "base"


class Proof(Strict):
    """Ways to serve, every mixture of these, in which the engine itself must agree with our unpacked weights."""

    kv: list[Literal[16, 8, 4]] = Field(min_length=1, description="bits of the KV cache")
    tp: list[Literal[1, 2, 4, 8, 16]] = Field(min_length=1, description="numbers of GPUs")
    layouts: list[Literal["llama", "internlm2"]] = Field(min_length=1)

    @property
    def ways(self) -> list[Way]:
        """The mixtures."""
        return [Way(layout, bits, tp) for layout, tp, bits in product(self.layouts, self.tp, self.kv)]

    @property
    def options(self) -> str:
        """What `turbopress conformance` is told to prove them."""
        kv, tp, layouts = (",".join(map(str, values)) for values in (self.kv, self.tp, self.layouts))
        return f"--kv {kv} --tp {tp} --layout {layouts}"


class Gate(Strict):
    """Limits by what they bound, and the proof that is demanded; one that is left out is not asked.

    Against the champion KL and agreement are differences (0 asks for nothing worse) and the others are ratios.
    """

    most_kl_nats: Limit | None = None
    most_perplexity_rise: Limit | None = Field(default=None, description="a share: 0.02 is two per cent")
    least_top1_agreement: Limit | None = None
    most_size_ratio: Limit | None = Field(default=None, description="bytes of the tensors, as a share of the other's")
    least_speed_ratio: Limit | None = Field(default=None, description="tokens a second, as a share of the other's")

    proof: Proof | None = Field(default=None, description="of `turbopress conformance`, for these bytes")

    @property
    def asked(self) -> dict[str, Limit]:
        """The limits that are set, by name."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: limit for name, limit in fields.items() if isinstance(limit, Limit)}
