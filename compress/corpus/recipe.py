"""What a user says about a text: one source, or a mix of several by weight."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from compress.strict import Strict

FILES = (".jsonl", ".txt", ".parquet")  # any other source is a data set's id or folder

Counts = Literal["all", "answers"]


class Part(Strict):
    """A source of a mix, and how much of the windows is its own."""

    source: str = Field(description="a .jsonl, .txt or .parquet file, or a Hugging Face data set id or folder")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="its share of the windows, against the others'")
    split: str = Field("train", description="of a data set id")
    counts: Counts = Field("all", description="which tokens count: all, or of chat messages only the assistant's")


def _one_or_mix(value: Any) -> str:
    return "[mix]" if isinstance(value, list) else "[one]"  # in brackets: no key of the file


Source = Annotated[
    Annotated[str, Tag("[one]")] | Annotated[list[Part], Tag("[mix]"), Field(min_length=1)], Discriminator(_one_or_mix)
]


class CorpusRecipe(Strict):
    """Where text comes from and how much of it is taken; `split` and `counts` are those of a single source."""

    source: Source = Field(description="a file, or a Hugging Face data set id or folder; or a list of parts")
    windows: int = Field(ge=1)
    length: int = Field(ge=16, description="tokens of a window")
    seed: int = 0
    split: str = "train"
    counts: Counts = "all"

    @property
    def parts(self) -> list[Part]:
        """The sources with their weights; a single source is a mix of one."""
        if isinstance(self.source, str):
            return [Part(source=self.source, weight=1.0, split=self.split, counts=self.counts)]
        return self.source

    @property
    def is_mix(self) -> bool:
        """Whether the windows are divided among sources."""
        return not isinstance(self.source, str)

    @field_validator("source")
    @classmethod
    def _no_source_twice(cls, source: str | list[Part]) -> str | list[Part]:
        named = [] if isinstance(source, str) else [(part.source, part.split) for part in source]
        for name, split in named:
            if named.count((name, split)) > 1:
                raise ValueError(f"{name} is named twice, and both parts would be the same windows; add their weights")
        return source

    @model_validator(mode="after")
    def _said_where_it_is_heard(self) -> "CorpusRecipe":
        if self.is_mix and (said := sorted({"split", "counts"} & self.model_fields_set)):
            raise ValueError(f"of a mix, {' and '.join(said)} must stand in each part of source")
        return self
