"""Trains the demo's tokenizer: SentencePiece BPE with byte fallback, laid out as InternLM2's published one is.

    python examples/demo/make_tokenizer.py TRAIN.jsonl.xz examples/demo/base CONVERTED

The published vocabulary ends in reserved pieces ([UNUSED_TOKEN_141] …), which tokenizer_config.json renames to the chat
markup. This one does the same, so that the demo meets what a real InternLM2 brings. CONVERTED receives the
tokenizer.json that train.py reads, made by the same code that `turbopress` reads the base with.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import sentencepiece
import typer
from documents import MARKUP, Document, read_documents
from sentencepiece import sentencepiece_model_pb2 as pb

from compress.checkpoint.tokenizer import write_tokenizer

VOCAB_SIZE = 6144
# From the end of the vocabulary: the last is <|im_start|>, as in the published one.
RESERVED = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
FIRST_RESERVED_NUMBER = 141
# Rare Chinese characters are spelled in bytes: all 3,800 of the novel would leave little room for English.
CHARACTER_COVERAGE = 0.998
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}


def lines(documents: list[Document]) -> Iterator[str]:
    """Yields the text's lines without markup."""
    for document in documents:
        yield from (line for line in MARKUP.sub("", document.text).split("\n") if line)


def train_pieces(documents: list[Document]) -> bytes:
    """Returns a SentencePiece model of all pieces but the reserved ones."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines(documents),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE - len(RESERVED),
        byte_fallback=True,
        split_digits=True,
        character_coverage=CHARACTER_COVERAGE,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        max_sentence_length=100_000,
        minloglevel=1,
    )
    return model.getvalue()


def with_reserved(model: bytes) -> bytes:
    """Returns the model with the reserved pieces at the end of its vocabulary."""
    proto = pb.ModelProto()
    proto.ParseFromString(model)
    for number in range(len(RESERVED)):
        piece = proto.pieces.add()
        piece.piece, piece.type = f"[UNUSED_TOKEN_{FIRST_RESERVED_NUMBER + number}]", piece.CONTROL
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString(deterministic=True)


def tokenizer_config() -> dict[str, Any]:
    """Returns what InternLM2's tokenizer_config.json says, without its `auto_map`."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    names = {0: "<unk>", 1: "<s>", 2: "</s>"}
    names |= {VOCAB_SIZE - len(RESERVED) + number: name for number, name in enumerate(RESERVED)}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(index): {"content": name, **flags} for index, name in names.items()},
        "additional_special_tokens": RESERVED[::-1],
        **ROLES,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "tokenizer_class": "InternLM2Tokenizer",
    }


def write_json(path: Path, value: object) -> None:
    """Writes JSON as the rest of the base has it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf8")


def main(
    train: Annotated[Path, typer.Argument(help="training text that make_corpus.py left")],
    base: Annotated[Path, typer.Argument(help="folder of the model to be")],
    converted: Annotated[Path, typer.Argument(help="folder for tokenizer.json")],
) -> None:
    """Leaves the tokenizer's files in `base` and their conversion in `converted`."""
    base.mkdir(parents=True, exist_ok=True)
    (base / "tokenizer.model").write_bytes(with_reserved(train_pieces(read_documents(train))))
    write_json(base / "tokenizer_config.json", tokenizer_config())
    write_json(base / "special_tokens_map.json", {**ROLES, "additional_special_tokens": RESERVED[::-1]})
    chat_end = VOCAB_SIZE - len(RESERVED) + RESERVED.index("<|im_end|>")
    write_json(base / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, chat_end], "pad_token_id": 2})
    converted.mkdir(parents=True, exist_ok=True)
    write_tokenizer(base, converted)
    print(f"{base}: {VOCAB_SIZE} entries")


if __name__ == "__main__":
    typer.run(main)
