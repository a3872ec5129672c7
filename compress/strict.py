"""The base of every recipe: frozen, and an unknown key is an error, not a wish that nobody hears."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A frozen value from `params.yaml` whose keys are all known."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
