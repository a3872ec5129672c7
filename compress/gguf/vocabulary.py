"""A tokenizer.json in the words of llama.cpp: of SentencePiece's kind with scores, of the byte-level kind with merges.

Of SentencePiece's kind llama.cpp joins the two neighbours whose result has the best score, the leftmost of equals:
SentencePiece's own loop. A merge list says the same when a piece's rank depends on the piece alone and not on how it is
split; then minus the rank is a score. `scores` proves it of the list at hand and refuses any other: a piece is made in
one way only (`sentencepiece_bpe.py` says why), so its merge must be in the list, and the ranks of two pieces must not
interleave.

One thing differs: NUL, which GGUF's strings cannot name, is spelled as a byte.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from compress.checkpoint.sentencepiece_bpe import SPACE, last_join
from compress.checkpoint.special_tokens import Json, merge_pairs, read_json, token_ids
from compress.errors import CompressError
from compress.gguf.byte_level import is_byte_level, merge_lines, pre_name

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # llama.cpp's kinds of tokens
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
REMEDY = "serve it by LMDeploy or transformers"
ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unk", "pad_token": "pad"}
MORE_ENDS = ("eot", "eom")  # llama.cpp's names for ends besides eos


@dataclass(frozen=True)
class Scores:
    """SentencePiece's way: each id's score, and whether a space goes before a text."""

    scores: list[float]
    adds_space: bool


@dataclass(frozen=True)
class Merges:
    """The byte-level way: "left right", the best first, and llama.cpp's name of how a text is cut beforehand."""

    merges: list[str]
    pre: str


@dataclass(frozen=True)
class Vocabulary:
    """Each id's text and kind; how texts are joined; the ids that have a role; what is put around and before a text."""

    tokens: list[str]
    kinds: list[int]
    joins: "Scores | Merges"
    roles: dict[str, int]
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of a folder that `write_tokenizer` wrote, filled up to the model's `size` rows."""
    place = folder / "tokenizer.json"
    tokenizer = read_json(place)
    ids = token_ids(tokenizer)
    tokens, kinds = _listed(ids, tokenizer, size, place)
    try:
        _refuse_flags(tokenizer["added_tokens"])
        joins = _joins(tokenizer, tokens)
    except CompressError as error:
        raise CompressError(f"{place}: {error}; {REMEDY}") from None
    config = read_json(folder / "tokenizer_config.json")
    framed = Tokenizer.from_file(str(place)).encode("").tokens
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        joins=joins,
        roles=_roles(config, ids, read_json(folder / "generation_config.json"), place),
        adds_bos=config.get("bos_token") in framed,
        adds_eos=bool(framed) and framed[-1] == config.get("eos_token") != config.get("bos_token"),
        chat_template=config.get("chat_template"),
    )


def _joins(tokenizer: Json, tokens: list[str]) -> Scores | Merges:
    """How the tokenizer joins pieces, whichever kind it is."""
    if tokenizer["model"].get("type") == "BPE" and is_byte_level(tokenizer):
        return Merges(merge_lines(tokenizer), pre_name(tokenizer))
    adds_space = _adds_space(tokenizer)
    ranked = scores(tokenizer["model"], {entry["content"] for entry in tokenizer["added_tokens"]})
    return Scores([ranked.get(token, -float(len(ranked) + 1)) for token in tokens], adds_space)


def scores(model: Json, added: set[str]) -> dict[str, float]:
    """Scores by which llama.cpp joins what the merge list joins; refuses a list that no scores can say."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    merges = [(left, right) for left, right in merge_pairs(model)]
    for rank, pair in enumerate(merges):
        piece = "".join(pair)
        first.setdefault(piece, rank)
        last[piece] = rank
    ranked = {piece: -float(rank) for piece, rank in first.items()}
    _refuse_interleaved(first, last)
    known = set(merges)
    for piece in model["vocab"].keys() - added:
        join = last_join(piece, ranked) if len(piece) > 1 else None
        if join is not None and join not in known:
            raise CompressError(f"{piece!r} would be joined from {join[0]!r} and {join[1]!r}, which is no merge here")
    return ranked


def _refuse_interleaved(first: dict[str, int], last: dict[str, int]) -> None:
    end = -1
    for piece, rank in first.items():  # in the order of their first ranks
        if rank < end:
            raise CompressError(f"the merges of {piece!r} lie between those of another piece; no score says so")
        end = max(end, last[piece])


def _adds_space(tokenizer: Json) -> bool:
    """Whether a space goes before a text; refuses every other tokenizer that is no BPE of SentencePiece's kind."""
    model = tokenizer["model"]
    if model.get("type") != "BPE" or not model.get("byte_fallback") or model.get("ignore_merges"):
        raise CompressError(f"a {model.get('type')} model without byte pieces; only BPE goes to GGUF")
    if tokenizer.get("pre_tokenizer"):
        kind = tokenizer["pre_tokenizer"].get("type")
        raise CompressError(f"pre_tokenizer {kind}: SentencePiece's kind of BPE has none")
    if missing := [piece for piece in BYTES if piece not in model["vocab"]]:
        raise CompressError(f"{len(missing)} byte pieces are missing (first: {missing[0]})")
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    found = tokenizer.get("normalizer") or {}
    steps = found.get("normalizers") if found.get("type") == "Sequence" else [found]
    if steps not in ([escape], [prepend, escape]):
        raise CompressError(f"normalizer {found}: llama.cpp replaces spaces and may put one in front")
    return steps != [escape]


def _refuse_flags(added: list[Json]) -> None:
    for entry in added:
        if entry["lstrip"] or entry["rstrip"] or entry["single_word"]:
            raise CompressError(f"added token {entry['content']!r} takes blanks or whole words; llama.cpp does not")


def _listed(ids: dict[str, int], tokenizer: Json, size: int, place: Path) -> tuple[list[str], list[int]]:
    """Texts and kinds by id; ids that no text has are named and never used."""
    if max(ids.values()) >= size:
        raise CompressError(f"{place}: ids up to {max(ids.values())}, but the model has {size} rows; {REMEDY}")
    tokens, kinds = [f"[PAD{index}]" for index in range(size)], [UNUSED] * size
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index], kinds[index] = token, BYTE if token in BYTES else NORMAL
    for entry in tokenizer["added_tokens"]:
        tokens[entry["id"]] = entry["content"]
        kinds[entry["id"]] = CONTROL if entry["special"] else USER_DEFINED
    unknown = tokenizer["model"].get("unk_token")
    if unknown in ids:
        kinds[ids[unknown]] = UNKNOWN
    return tokens, kinds


def _roles(config: Json, ids: dict[str, int], generation: Json, place: Path) -> dict[str, int]:
    """Ids by llama.cpp's names of roles; every token that ends an answer must have one."""
    roles = {ours: ids[config[role]] for role, ours in ROLES.items() if config.get(role) in ids}
    said: Any = generation.get("eos_token_id", [])
    ends = [index for index in (said if isinstance(said, list) else [said]) if index != roles.get("eos")]
    if len(ends) > len(MORE_ENDS):
        raise CompressError(f"{place}: {len(ends)} tokens end an answer beside eos, GGUF names 2; {REMEDY}")
    return roles | dict(zip(MORE_ENDS, ends, strict=False))


def write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Tells a GGUFWriter the vocabulary."""
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    match vocabulary.joins:
        case Scores(scores, adds_space):
            writer.add_tokenizer_model("llama")
            writer.add_tokenizer_pre("default")
            writer.add_token_scores(scores)
            writer.add_add_space_prefix(adds_space)
        case Merges(merges, pre):
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(pre)
            writer.add_token_merges(merges)
    for role, index in vocabulary.roles.items():
        getattr(writer, f"add_{role}_token_id")(index)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
