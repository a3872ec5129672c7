"""The tokens that are no text: who they are, which ids they have, which of them end an answer.

Three files may say it, the newest first: `tokenizer_config.json` (`added_tokens_decoder`, id → name and flags), and
before that `special_tokens_map.json` (roles) with `added_tokens.json` (name → id). InternLM2 uses them to *rename*:
its vocabulary calls id 92542 `[UNUSED_TOKEN_145]`, its chat markup `<|im_end|>`. A loader that misses the rename
gives the markup new ids past the end of the embedding, or spells it in pieces, and the model answers nonsense without
an error; so here a name that finds no id is an error.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import CompressError

Json = dict[str, Any]

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
CHAT_END = "<|im_end|>"


@dataclass(frozen=True)
class SpecialTokens:
    """The declared tokens: by role, without a role, and by id with their flags."""

    roles: dict[str, str]
    extra: list[str]
    added: dict[int, Json]


def read_json(path: Path) -> Json:
    """Returns the object in a JSON file, empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf8"))
    except ValueError as error:
        raise CompressError(f"{path}: {error}; fetch the file again") from None
    if not isinstance(value, dict):
        raise CompressError(f"{path}: a {type(value).__name__}; an object is wanted, fetch the file again")
    return value


def read_special_tokens(source: Path) -> SpecialTokens:
    """Returns what the folder's files declare, each file believed where transformers believes it."""
    config = read_json(source / "tokenizer_config.json")
    mapped = read_json(source / "special_tokens_map.json")
    modern = "added_tokens_decoder" in config
    known = {**mapped, **config} if modern else {**config, **mapped}
    roles = {role: _content(known[role]) for role in ROLES if known.get(role)}
    extra = [_content(token) for token in _listed(known)]
    special = {*roles.values(), *extra}
    if modern:
        added = {int(index): _declared(int(index), token) for index, token in config["added_tokens_decoder"].items()}
    else:
        names = read_json(source / "added_tokens.json")
        added = {int(index): added_token(int(index), name, special=name in special) for name, index in names.items()}
    return SpecialTokens(roles, extra, added)


def _content(token: str | Json) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _listed(known: Json) -> list[str | Json]:
    """Returns the tokens without a role; transformers 5 renamed the key, and allows a table where 4 had a list."""
    listed = known.get("additional_special_tokens") or known.get("extra_special_tokens") or []
    return list(listed.values()) if isinstance(listed, dict) else list(listed)


def added_token(index: int, content: str, *, special: bool) -> Json:
    """Returns the entry of a token matched whole; a special one in the raw text, another one after normalizing."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return {"id": index, "content": content, **flags}


def token_ids(tokenizer: Json) -> dict[str, int]:
    """Returns the id of every token that a tokenizer.json knows."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # unigram: (piece, score), the place is the id
        vocabulary = {piece: index for index, (piece, _) in enumerate(vocabulary)}
    return {**vocabulary, **{entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}}


def merge_pairs(model: Json) -> list[list[str]]:
    """Returns the merges of a BPE model as [left, right], of another model none."""
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", [])]


def _declared(index: int, token: Json) -> Json:
    entry = added_token(index, token["content"], special=bool(token.get("special", False)))
    return {key: token.get(key, value) if key != "id" else value for key, value in entry.items()}


def with_special_tokens(tokenizer: Json, tokens: SpecialTokens, place: Path) -> Json:
    """Returns the tokenizer.json in which every declared token is matched whole and has its declared id."""
    names = {index: entry["content"] for index, entry in tokens.added.items()}
    model = _with_names(tokenizer["model"], names, place)
    kept = [{**entry, "content": names.get(entry["id"], entry["content"])} for entry in tokenizer["added_tokens"]]
    renamed = {**tokenizer, "model": model, "added_tokens": kept}
    ids = _with_appended(token_ids(renamed), tokens.added, place)
    entries = {entry["id"]: entry for entry in kept} | tokens.added
    for name in (*tokens.roles.values(), *tokens.extra):
        if name not in ids:
            raise CompressError(f"{place}: special token {name!r} has no id; declare it in added_tokens_decoder")
        index = ids[name]
        entries[index] = {**entries.get(index, added_token(index, name, special=True)), "special": True}
    return {**renamed, "added_tokens": [entries[index] for index in sorted(entries)]}


def _with_names(model: Json, names: dict[int, str], place: Path) -> Json:
    """Returns the tokenizer's model with the vocabulary's entries called by their declared names."""
    if isinstance(model["vocab"], list):
        return model  # of a unigram model nobody renames pieces; _with_appended finds who tries
    vocabulary = {names.get(index, name): index for name, index in model["vocab"].items()}
    if vocabulary == model["vocab"]:
        return model
    lost = model["vocab"].keys() - vocabulary.keys()
    used = {token for pair in merge_pairs(model) for token in (*pair, "".join(pair)) if token in lost}
    if used or len(vocabulary) < len(model["vocab"]):
        trouble = f"merges use {sorted(used)}" if used else "a new name is taken"
        raise CompressError(f"{place}: cannot rename {sorted(lost)[:4]}: {trouble}; correct added_tokens_decoder")
    return {**model, "vocab": vocabulary}


def _with_appended(ids: dict[str, int], added: dict[int, Json], place: Path) -> dict[str, int]:
    """Returns the ids with the tokens that follow the vocabulary; nobody may have two ids or leave a hole."""
    grown = dict(ids)
    for index, entry in sorted(added.items()):
        known = grown.setdefault(entry["content"], max(grown.values(), default=-1) + 1)
        if known != index:
            raise CompressError(
                f"{place}: {entry['content']!r} is declared as id {index}, the vocabulary gives {known}; "
                "correct added_tokens_decoder"
            )
    return grown
