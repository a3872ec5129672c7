"""`gate:` of params.yaml: what a candidate must show before `turbopress promote` moves an alias to it."""

from typing import Literal

from pydantic import Field

from compress.strict import Strict

Opponent = Literal["base", "champion"]


class Limit(Strict):
    """A bound, and whom the candidate is held against; of an interval the worse end must keep it."""

    limit: float = Field(allow_inf_nan=False)
    against: Opponent = "base"


class Gate(Strict):
    """Limits by what they bound; one that is left out is not asked.

    Against the champion KL and agreement are differences (0 asks for nothing worse) and the others are ratios.
    """

    most_kl_nats: Limit | None = None
    most_perplexity_rise: Limit | None = Field(default=None, description="a share: 0.02 is two per cent")
    least_top1_agreement: Limit | None = None
    most_size_ratio: Limit | None = Field(default=None, description="bytes of the tensors, as a share of the other's")
    least_speed_ratio: Limit | None = Field(default=None, description="tokens a second, as a share of the other's")

    @property
    def asked(self) -> dict[str, Limit]:
        """The limits that are set, by name."""
        return {name: limit for name in type(self).model_fields if (limit := getattr(self, name)) is not None}
