"""SentencePiece BPE, said again in the words of the `tokenizers` library.

The two programs run the same loop (join the best adjacent pair until none is left) but price it differently.
SentencePiece prices the *result*: every piece has a score, any two neighbours that spell a piece may be joined, and
among equals the leftmost goes first. `tokenizers` prices the *pair*: a merge list, one rank for each (left, right).
The usual conversion lists every way to split every piece, and one has to hope that two ways to split one piece never
compete by rank where SentencePiece looks at position.

They do not, for a piece is only ever made in one way. Take the stretch of text that becomes a piece: until it is
whole, no join crosses its ends, so the joins inside it happen in the order they would if the piece stood alone.
Encode the piece alone, look at its last join, and that is its one merge; a piece that does not come out whole can
never be made and gets none. (InternLM2: 84,069 merges; every split would be 165,112.) Rank order is now score order,
and equal rank means equal pair, which `tokenizers` takes from the left too.

Left over are different pieces of equal score. They are put in an order that agrees with "leftmost first" (whoever
ends where another begins goes first) and refused where no order can. Refused as well, because no tokenizer.json says
the same: unigram models, character maps, whitespace clean-up, user-defined pieces behind a dummy prefix, unused
pieces that a join can reach, merges through characters the vocabulary lacks.

What differs by design: control pieces (`<s>`) written out in a text become their ids, as in every Hugging Face
tokenizer, while SentencePiece spells them; with a dummy prefix every stretch between such tokens gets one, as
InternLM2's own tokenizer class does. Decoding agrees on everything encoding can produce; for byte pieces that form no
valid UTF-8 `tokenizers` writes U+FFFD for the whole run of bytes and SentencePiece for the wrong ones only, and an
unknown piece is shown by its name instead of as "⁇". NUL keeps the id that the vocabulary gives it, as in InternLM2's
published tokenizer, while SentencePiece 0.2.3 spells it as a byte.
"""

from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from itertools import groupby, pairwise
from math import inf
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as pb

from compress.checkpoint.special_tokens import Json, added_token
from compress.errors import CompressError

Scores = dict[str, float]  # of the pieces a join may produce
Split = tuple[str, str]

SPACE = "▁"
REMEDY = "save a tokenizer.json with the model's own library and put it beside"


def convert(model: Path) -> Json:
    """Returns a tokenizer.json, without post-processor, that encodes as the SentencePiece model in the file does."""
    proto = read_proto(model)
    try:
        _refuse_settings(proto)
        scores = {p.piece: p.score for p in proto.pieces if p.type in (p.NORMAL, p.UNUSED)}
        merges = merge_list(scores)
        _refuse_merges(proto, merges)
    except CompressError as error:
        raise CompressError(f"{model}: {error}; {REMEDY}") from None
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(proto),
        "normalizer": _normalizer(proto),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _decoder(proto),
        "model": _bpe(proto, merges),
    }


def read_proto(model: Path) -> Any:
    """Returns the SentencePiece model that the file holds."""
    proto = pb.ModelProto()
    try:
        proto.ParseFromString(model.read_bytes())
    except DecodeError:
        raise CompressError(f"{model}: no SentencePiece model; fetch the file again (a Git LFS pointer?)") from None
    if not proto.pieces:
        raise CompressError(f"{model}: a SentencePiece model without pieces; fetch the file again")
    return proto


def merge_list(scores: Scores) -> list[Split]:
    """Returns one merge for each piece that joins can make, best first, in an order that keeps to "leftmost first"."""
    made = {piece: split for piece in scores if (split := last_join(piece, scores))}
    ranked = sorted(made, key=lambda piece: -scores[piece])
    products = defaultdict(list)
    for piece, split in made.items():
        for part in split:
            products[part].append(scores[piece])
    return [
        made[piece]
        for score, tied in groupby(ranked, key=lambda piece: scores[piece])
        for piece in _leftmost_first(score, list(tied), made, products)
    ]


def last_join(piece: str, scores: Scores) -> Split | None:
    """Returns the two parts whose join completes the piece encoded alone, or None where it never is whole."""
    parts = list(piece)
    while len(parts) > 2:
        joins = [left + right for left, right in pairwise(parts)]
        best = max(range(len(joins)), key=lambda at: scores.get(joins[at], -inf))  # the first of equals
        if joins[best] not in scores:
            return None
        parts[best : best + 2] = [joins[best]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _leftmost_first(
    score: float, tied: list[str], made: dict[str, Split], products: dict[str, list[float]]
) -> list[str]:
    """Returns the pieces of one score in an order in which whoever ends where another begins comes first."""
    if len(tied) == 1:
        return tied
    chained = next((piece for piece in tied if max(products[piece], default=-inf) >= score), None)
    if chained is not None:  # joining it opens a join just as good, so position would decide between more than these
        raise CompressError(f"pieces {tied[:4]} share the score {score} and {chained!r} is part of one as good")
    ending = defaultdict(list)
    for piece in tied:
        ending[made[piece][1]].append(piece)
    before = {piece: [other for other in ending[made[piece][0]] if other != piece] for piece in tied}
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError as error:
        raise CompressError(f"pieces {error.args[1]} share the score {score}, only position tells them apart") from None


def _refuse_settings(proto: Any) -> None:
    """Refuses the settings that would make a tokenizer.json encode or decode otherwise."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type != trainer.BPE:
        raise CompressError(
            f"trainer_spec.model_type is {trainer.ModelType.Name(trainer.model_type)}, only BPE is converted"
        )
    if trainer.treat_whitespace_as_suffix:
        raise CompressError("trainer_spec.treat_whitespace_as_suffix is set, only spaces in front are converted")
    if normalizer.precompiled_charsmap or proto.denormalizer_spec.precompiled_charsmap:
        raise CompressError(f"the character map {normalizer.name!r} is not the identity")
    if normalizer.remove_extra_whitespaces:
        raise CompressError(
            "normalizer_spec.remove_extra_whitespaces is set, only texts kept as they are are converted"
        )
    if not normalizer.escape_whitespaces:
        raise CompressError(f"normalizer_spec.escape_whitespaces is off, only spaces written as {SPACE} are converted")
    custom = next((p.piece for p in proto.pieces if p.type == p.USER_DEFINED), None)
    if custom is not None and normalizer.add_dummy_prefix:
        raise CompressError(f"user-defined piece {custom!r} together with normalizer_spec.add_dummy_prefix")


def _refuse_merges(proto: Any, merges: list[Split]) -> None:
    """Refuses unused pieces that a text can reach, and merges through characters without an id."""
    ids = {p.piece for p in proto.pieces}
    joined = {left + right for left, right in merges}
    reached = next(
        (p.piece for p in proto.pieces if p.type == p.UNUSED and (len(p.piece) == 1 or p.piece in joined)), None
    )
    if reached is not None:
        raise CompressError(f"unused piece {reached!r} can occur, and would be split or spelled in bytes")
    for left, right in merges:
        if left not in ids or right not in ids:
            raise CompressError(f"piece {left + right!r} is joined from {left!r} and {right!r}, not both have an id")


def _added_tokens(proto: Any) -> list[Json]:
    """Returns the pieces that are matched whole: control and unknown ones as special, user-defined ones as text."""
    return [
        added_token(index, p.piece, special=p.type != p.USER_DEFINED)
        for index, p in enumerate(proto.pieces)
        if p.type in (p.CONTROL, p.UNKNOWN, p.USER_DEFINED)
    ]


def _normalizer(proto: Any) -> Json:
    prepend = {"type": "Prepend", "prepend": SPACE}
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return {
        "type": "Sequence",
        "normalizers": [prepend, escape] if proto.normalizer_spec.add_dummy_prefix else [escape],
    }


def _decoder(proto: Any) -> Json:
    unescape = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [unescape, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {"type": "Sequence", "decoders": [*decoders, strip] if proto.normalizer_spec.add_dummy_prefix else decoders}


def _bpe(proto: Any, merges: list[Split]) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next(p.piece for p in proto.pieces if p.type == p.UNKNOWN),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": bool(proto.trainer_spec.byte_fallback),
        "ignore_merges": False,
        "vocab": {p.piece: index for index, p in enumerate(proto.pieces)},
        "merges": [list(split) for split in merges],
    }
