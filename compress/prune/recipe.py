"""What a user says about pruning."""

from typing import Literal

from pydantic import Field

from compress.strict import Strict


class DepthRecipe(Strict):
    """Leaves out the `remove_layers` decoder layers that change their input least."""

    method: Literal["depth"]
    remove_layers: int = Field(ge=1)
