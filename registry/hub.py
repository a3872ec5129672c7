"""Pushing an artifact to a Hugging Face hub as one commit, its card completed with what was measured.

A card in an artifact holds no measurement; the one on the hub has the table of the registered version. Its metadata is
checked here by the hub's own rules, and once more by the hub before it takes the commit. The token is the one that
`hf auth login` has kept, or HF_TOKEN; HF_ENDPOINT names another hub.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from registry.errors import RegistryError
from registry.manifest import MANIFEST, verify

ADDRESS = re.compile(r"hf://(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<branch>[\w./-]+))?")
CARD = "README.md"
RELATIONS = {"adapter", "merge", "quantized", "finetune"}  # that a hub draws its model tree with
NETWORK = ("httpx", "httpx2", "httpcore", "requests")  # whose exceptions the hub's client lets through
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Committed:
    """The commit that holds the artifact."""

    address: str
    url: str

    def __str__(self) -> str:
        return f"{self.address}: {self.url}"


def push_to_hub(folder: Path, address: str, measured: str | None) -> Committed:
    """The artifact is the newest commit of the repository, which is made, private, where there is none."""
    parts = ADDRESS.fullmatch(address)
    if parts is None:
        raise RegistryError(f"{address}: names no repository of a hub; write hf://ORG/NAME or hf://ORG/NAME@BRANCH")
    manifest = verify(folder)
    card = complete_card((folder / CARD).read_text("utf8"), measured)
    require_metadata(card, address)
    from huggingface_hub import CommitOperationAdd, HfApi  # noqa: PLC0415 - slow to import
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    names = [name for name in [*sorted(manifest.files), MANIFEST] if name != CARD]
    files: list[Any] = [CommitOperationAdd(name, str(folder / name)) for name in names]
    api, said = HfApi(library_name="turbopress"), f"turbopress {manifest.digest[:12]}"
    try:
        api.create_repo(parts["id"], private=True, exist_ok=True)
        commit = api.create_commit(
            parts["id"],
            [*files, CommitOperationAdd(CARD, card.encode())],
            commit_message=said,
            revision=parts["branch"],
        )
    except Exception as error:
        is_theirs = type(error).__module__.split(".")[0] in NETWORK
        if not (is_theirs or isinstance(error, HfHubHTTPError | OSError | ValueError)):
            raise
        reason = " ".join(str(error).split())[:300]
        raise RegistryError(f"{address}: refused: {reason}; log in with hf auth login, or mend that") from error
    return Committed(address, commit.commit_url)


def complete_card(card: str, measured: str | None) -> str:
    """The artifact's card with the table of its measurements before the last paragraph."""
    if not measured:
        return card
    body, end = card.rstrip("\n").rsplit("\n\n", 1)
    return f"{body}\n\n## Measured\n\n{measured}\n\n{end}\n"


def require_metadata(card: str, place: str) -> None:
    """Refuses a card whose metadata a hub would refuse or misread, with every fault at once."""
    parts = card.split("---\n", 2)
    try:
        said = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    except yaml.YAMLError as error:
        raise RegistryError(f"{place}: the card's metadata is no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(said, dict):
        raise RegistryError(f"{place}: the card begins with no metadata between --- lines; make the artifact again")
    faults = [f"{key}: {said.get(key)!r}: {rule}" for key, rule in _faults(said)]
    if faults:
        raise RegistryError(f"{place}: the card's metadata would be refused: {'; '.join(faults)}")


def _faults(said: dict[str, Any]) -> list[tuple[str, str]]:
    base, relation = said.get("base_model"), said.get("base_model_relation")
    bases = base if isinstance(base, list) else [base] if base is not None else []
    rules = {
        ("base_model", "is no id ORG/NAME"): all(isinstance(b, str) and HUB_ID.fullmatch(b) for b in bases),
        ("base_model_relation", f"is none of {', '.join(sorted(RELATIONS))}"): relation is None
        or relation in RELATIONS,
        ("base_model_relation", "has no base_model beside it"): relation is None or bool(bases),
        ("tags", "is no list of words"): all(isinstance(tag, str) for tag in said.get("tags") or []),
        ("license", "is no word"): isinstance(said.get("license", ""), str),
        ("pipeline_tag", "is no word"): isinstance(said.get("pipeline_tag"), str),
        ("library_name", "is no word"): isinstance(said.get("library_name"), str),
    }
    return [rule for rule, kept in rules.items() if not kept]
