"""What the chat page's buttons do, without a browser."""

import threading
from pathlib import Path

from compress.checkpoint.tokenizer import write_tokenizer
from serving.engine import Sampling
from serving.errors import ServingError
from serving.images import data_url
from serving.web.offers import About, Offer, read_card
from serving.web.talk import Stops, answered, asked, side_by_side, spoken

BASE = Path(__file__).parents[1] / "examples" / "demo" / "base"
HOT = Sampling(max_tokens=8, temperature=0)


class Parrot:
    """An engine that says given words, so that a test knows them."""

    name = "parrot"

    def __init__(self, *words, fails=False):
        self.words, self.fails, self.asked, self.closed = words, fails, [], False

    def chat(self, messages, sampling):
        self.asked.append(list(messages))
        try:
            yield from self.words
            if self.fails:
                raise ServingError("http://x: the server went away")
        finally:
            self.closed = True


def offered(parrot):
    """The parrot as the page has it."""
    return Offer("parrot", lambda: parrot)


def unloadable():
    raise ServingError("models/x: model.safetensors was altered; fetch it again")


def test_an_answer_grows_and_the_history_ends_with_it():
    steps = list(answered([{"role": "user", "content": "hi"}], offered(Parrot("a", "b")), "", HOT, threading.Event()))
    assert [step[-1]["content"] for step in steps] == ["a", "ab"]
    assert steps[-1][0] == {"role": "user", "content": "hi"}


def test_a_system_prompt_reaches_the_model_and_not_the_history():
    parrot = Parrot("a")
    steps = list(answered([{"role": "user", "content": "hi"}], offered(parrot), "be brief", HOT, threading.Event()))
    assert parrot.asked[0][0] == {"role": "system", "content": "be brief"}
    assert all(message["role"] != "system" for message in steps[-1])


def test_stop_ends_this_session_s_answer_only():
    stops = Stops()
    mine, theirs = stops.begin("mine"), stops.begin("theirs")
    parrot = Parrot(*"abcdef")
    answer = spoken(offered(parrot), [], HOT, mine)
    assert next(answer) == "a"
    stops.stop("mine")
    assert list(answer) == []
    assert parrot.closed
    assert not theirs.is_set()


def test_a_failure_is_shown_after_what_was_said():
    assert (
        list(spoken(offered(Parrot("a", fails=True)), [], HOT, threading.Event()))[-1]
        == "a\n\n⚠ http://x: the server went away"
    )


def test_a_model_that_cannot_be_loaded_says_so_where_its_answer_would_stand():
    (told,) = spoken(Offer("x", unloadable), [], HOT, threading.Event())
    assert told == "⚠ models/x: model.safetensors was altered; fetch it again"
    pair = (Offer("one", lambda: Parrot("a")), Offer("x", unloadable))
    *_, (left, right, _) = side_by_side(pair, "hi", [], "", HOT, threading.Event())
    assert "a" in left
    assert "model.safetensors" in right


def test_what_is_no_image_is_refused_before_the_model_is_asked(tmp_path):
    (tmp_path / "x.png").write_text("no")
    *_, question, refusal = asked([], "what is it?", [tmp_path / "x.png"])
    assert question == {"role": "user", "content": "what is it?"}
    assert refusal["content"] == f"⚠ {tmp_path / 'x.png'}: is no PNG, JPEG or WebP; convert it"


def pair_of(*answers, **more):
    return tuple(Offer(name, lambda said=said: Parrot(*said), **more) for name, said in answers)


def test_side_by_side_ends_with_the_differences_in_words_where_there_is_no_tokenizer():
    pair = pair_of(("one", ["a ", "b"]), ("two", ["a ", "c"]))
    *_, (left, right, verdict) = side_by_side(pair, "hi", [], "", HOT, threading.Event())
    assert "<mark> b</mark>" in left
    assert "<mark> c</mark>" in right
    assert verdict == (
        "50 % of the words are the same; what differs is marked. "
        "Words are compared, because neither model's tokenizer is here."
    )


def test_side_by_side_compares_by_the_tokenizer_that_is_here_be_it_the_second_s(tmp_path):
    write_tokenizer(BASE, tmp_path)
    (one, other), known = pair_of(("one", ["a elephant"]), ("two", ["a elephants"])), About(folder=tmp_path)
    for pair, name in (((one, Offer("two", other.open, lambda: known)), "two"),
                       ((Offer("one", one.open, lambda: known), other), "one")):  # fmt: skip
        *_, (left, right, verdict) = side_by_side(pair, "hi", [], "", HOT, threading.Event())
        assert "mark" not in left
        assert right == '<div class="answer">a elephant<mark>s</mark></div>'
        assert verdict == (
            f"80 % of the tokens are the same; what differs is marked. Both are cut by the tokenizer of {name}."
        )


def test_a_damaged_tokenizer_is_told_and_the_answers_stay(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    pair = pair_of(("one", ["a"]), ("two", ["b"]), about=lambda: About(folder=tmp_path))
    *_, (left, right, verdict) = side_by_side(pair, "hi", [], "", HOT, threading.Event())
    assert ("a<" in left, "b<" in right) == (True, True)
    assert verdict.startswith(f"⚠ {tmp_path / 'tokenizer.json'}: ")


def test_one_image_goes_to_both_where_both_see_and_to_none_where_one_does_not(tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    parrots = Parrot("a"), Parrot("b")
    seeing = tuple(Offer(name, lambda p=p: p, sees_images=True) for name, p in zip("ab", parrots, strict=True))
    list(side_by_side(seeing, "what is it?", [tmp_path / "x.png"], "", HOT, threading.Event()))
    url = {"type": "image_url", "image_url": {"url": data_url(tmp_path / "x.png")}}
    assert [p.asked[0][0]["content"][0] for p in parrots] == [url, url]
    blind = (seeing[0], Offer("blind", unloadable))
    (told,) = side_by_side(blind, "what is it?", [tmp_path / "x.png"], "", HOT, threading.Event())
    assert told == ("", "", "⚠ blind: takes no images; leave them out, or choose two models that see")
    assert len(parrots[0].asked) == 1


def test_a_model_is_loaded_once_and_only_when_it_is_asked():
    made = []
    offer = Offer("one", lambda: made.append(1) or Parrot("a"))
    assert made == []
    assert offer.engine is offer.engine
    assert made == [1]


def test_a_card_is_shown_without_its_front_matter_and_with_its_figures(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: x\n---\n\n# name\n")
    (tmp_path / "report.json").write_text('{"metrics": {"kl_nats": 0.015625, "parameters": 1500000}}')
    text = read_card(tmp_path, tmp_path / "report.json")
    assert "license" not in text
    assert "### name" in text
    assert "| kl nats | 0.01562 |\n| parameters | 1,500,000 |" in text
