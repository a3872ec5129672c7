"""What a user says about a text: one source, or a mix of several by weight."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from compress.strict import Strict

FILES = (".jsonl", ".txt", ".parquet")  # any other source is a data set's id or folder

Counts = Literal["all", "answers"]
OWN = ("split", "name", "counts", "joined")  # what a source says of itself: of a mix each part does


class Part(Strict):
    """A source of a mix, and how much of the windows is its own."""

    source: str = Field(description="a .jsonl, .txt or .parquet file, or a Hugging Face data set id or folder")
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="its share of the windows, against the others'")
    split: str = Field("train", description="of a data set id")
    name: str | None = Field(None, description="the configuration of a data set that has several: wikitext-2-raw-v1")
    counts: Counts = Field("all", description="which tokens count: all, or of chat messages only the assistant's")
    joined: bool = Field(
        False, description="rows are pieces of one text, a blank line between, as WikiText is measured"
    )

    @model_validator(mode="after")
    def _name_of_a_data_set(self) -> "Part":
        _refuse_name_of_a_file(self.source, self.name)
        return self


def _refuse_name_of_a_file(source: str, name: str | None) -> None:
    if name is not None and source.endswith(FILES):
        raise ValueError(f"{source} is a file and has no configuration {name}; remove name")


def _one_or_mix(value: Any) -> str:
    return "[mix]" if isinstance(value, list) else "[one]"  # in brackets: no key of the file


Source = Annotated[
    Annotated[str, Tag("[one]")] | Annotated[list[Part], Tag("[mix]"), Field(min_length=1)], Discriminator(_one_or_mix)
]


class CorpusRecipe(Strict):
    """Where text comes from and how much of it is taken; what `OWN` names is a single source's."""

    source: Source = Field(description="a file, or a Hugging Face data set id or folder; or a list of parts")
    windows: int = Field(ge=1)
    length: int = Field(ge=16, description="tokens of a window")
    seed: int = 0
    split: str = "train"
    name: str | None = None
    counts: Counts = "all"
    joined: bool = False

    @property
    def parts(self) -> list[Part]:
        """The sources with their weights; a single source is a mix of one."""
        if isinstance(self.source, str):
            own = {name: getattr(self, name) for name in OWN}
            return [Part(source=self.source, weight=1.0, **own)]
        return self.source

    @property
    def is_mix(self) -> bool:
        """Whether the windows are divided among sources."""
        return not isinstance(self.source, str)

    @field_validator("source")
    @classmethod
    def _no_source_twice(cls, source: str | list[Part]) -> str | list[Part]:
        named = [] if isinstance(source, str) else [(part.source, part.name, part.split) for part in source]
        for place, name, split in named:
            if named.count((place, name, split)) > 1:
                raise ValueError(f"{place} is named twice, and both parts would be the same windows; add their weights")
        return source

    @model_validator(mode="after")
    def _name_of_a_data_set(self) -> "CorpusRecipe":
        if isinstance(self.source, str):
            _refuse_name_of_a_file(self.source, self.name)
        return self

    @model_validator(mode="after")
    def _said_where_it_is_heard(self) -> "CorpusRecipe":
        if self.is_mix and (said := sorted(set(OWN) & self.model_fields_set)):
            raise ValueError(f"of a mix, {' and '.join(said)} must stand in each part of source")
        return self
