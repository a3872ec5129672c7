"""Small SentencePiece models, trained or made by hand, and strings to try on them."""

import io
import random

from sentencepiece import SentencePieceTrainer
from sentencepiece import sentencepiece_model_pb2 as pb

ENGLISH = """The committee reviewed 1,024 proposals in 2019, and it's the first time that fewer than 30% were refused.
She said: "Don't open the door before 7:45!" Nobody answered; the corridor stayed as dark as it had been all winter."""
CHINESE = """今天的天气很好，我们一起去公园散步吧。人工智能正在改变世界，许多研究者对此感到兴奋，也有人担心它的影响。
会议将于2023年11月5日上午九点半在北京举行，请各位代表准时参加；如有疑问，可以拨打电话咨询。"""
CODE = """def walk(tree, depth=0):\n    for node in tree:\n        if node.leaf == 1:\n            print("  ", node)
        else:\n\t\twalk(node.children, depth + 1)  # ========\nreturn [x ** 2 for x in range(10) if x != 3]\n\n\n"""
ODD = [
    "",
    " ",
    "  ",
    "\n",
    "\t\t",
    "▁",
    "▁▁ ▁",
    " a",
    "a ",
    "🙂🙃👩‍👩‍👧",
    "e\u0301é",
    "ﬁ ｆｕｌｌ",
    "\u200b\ufeff",
    "\U0010ffff",
    "\x01\x7f",
]


def train(byte_fallback=True, dummy_prefix=False, **options):
    """Returns a small SentencePiece BPE model of English, Chinese, code and runs of characters."""
    rng = random.Random(0)
    words = ENGLISH.split() + CODE.split(" ") + [CHINESE[at : at + 6] for at in range(len(CHINESE) - 6)]
    runs = [char * size for char in " =-a\t…" for size in (2, 3, 4, 5, 8, 16)]
    lines = [" ".join(rng.choices(words + runs, k=12)) for _ in range(400)]
    buffer = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines + ENGLISH.split("\n") + CHINESE.split("\n")),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=1200,
        byte_fallback=byte_fallback,
        add_dummy_prefix=dummy_prefix,
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_by_whitespace": False}
        | options,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=3,
    )
    return pb.ModelProto.FromString(buffer.getvalue())


def model_of(pieces, **settings):
    """Returns a hand-made model: the characters of the pieces first, then the pieces with their scores."""
    model = pb.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = False
    for name, value in settings.items():
        setattr(model.normalizer_spec, name, value)
    model.pieces.add(piece="<unk>", type=model.SentencePiece.UNKNOWN)
    for char in sorted(set("".join(pieces)) - pieces.keys()):
        model.pieces.add(piece=char, score=-1000)
    for piece, score in pieces.items():
        model.pieces.add(piece=piece, score=score)
    return model


def texts(pieces, count, seed=0):
    """Returns strings of pieces, runs, cut-outs of real text and random characters."""
    rng = random.Random(seed)
    vocabulary = [piece.replace("▁", " ") for piece in pieces]
    source = ENGLISH + CHINESE + CODE

    def part():
        at = rng.randrange(len(source))
        low, high = rng.choice([(1, 0x7F), (0x80, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)])
        run = rng.choice(" \n\t=-aA…哈0") * rng.randint(1, 40)
        return rng.choice([rng.choice(vocabulary), run, source[at : at + 30], chr(rng.randint(low, high))])

    return ODD + [source] + ["".join(part() for _ in range(rng.randint(1, 8))) for _ in range(count)]
