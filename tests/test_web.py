"""What the chat page's buttons do, without a browser."""

import html
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from serving_process import free_port

from serving.engine import Sampling
from serving.errors import ServingError
from serving.web.differences import marked, share_equal, tokens
from serving.web.offers import Offer, read_card
from serving.web.talk import Stops, answered, asked, side_by_side, spoken

ROOT = Path(__file__).parents[1]
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


@pytest.mark.parametrize("text", ["", "A dog, and a cat.", "你好，world  two\nlines", "日本語 mixed with words"])
def test_tokens_joined_are_the_text(text):
    assert "".join(tokens(text)) == text


def test_what_differs_is_marked_in_both_and_nothing_else():
    left, right = marked("A dog is cute.", "A dog is very <b>old</b>.")
    assert left == "A dog is<mark> cute</mark>."
    assert right == f"A dog is<mark>{html.escape(' very <b>old</b>')}</mark>."
    assert marked("same words", "same words") == ("same words", "same words")
    assert share_equal("a b c d", "a b x d") == 0.75


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
    *_, (left, right, _) = side_by_side(*pair, "hi", "", HOT, threading.Event())
    assert "a" in left
    assert "model.safetensors" in right


def test_what_is_no_image_is_refused_before_the_model_is_asked(tmp_path):
    (tmp_path / "x.png").write_text("no")
    *_, question, refusal = asked([], "what is it?", [tmp_path / "x.png"])
    assert question == {"role": "user", "content": "what is it?"}
    assert refusal["content"] == f"⚠ {tmp_path / 'x.png'}: is no PNG, JPEG or WebP; convert it"


def test_side_by_side_ends_with_the_differences():
    pair = (Offer("one", lambda: Parrot("a ", "b")), Offer("two", lambda: Parrot("a ", "c")))
    *_, (left, right, verdict) = side_by_side(*pair, "hi", "", HOT, threading.Event())
    assert "<mark> b</mark>" in left
    assert "<mark> c</mark>" in right
    assert verdict == "50 % of the tokens are the same; what differs is marked."


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


# --- what a hosting service starts


def test_requirements_are_those_of_pyproject():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
    lines = [line for line in (ROOT / "requirements.txt").read_text("utf8").splitlines() if not line.startswith("#")]
    assert lines == project["dependencies"] + project["optional-dependencies"]["web"]


def test_app_py_makes_the_page_from_the_base_that_comes_with_the_repository():
    told = "import app; print(type(app.demo).__name__, 'examples/demo/base' in str(app.demo.config))"
    done = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Blocks", "True"]


@pytest.fixture(scope="module")
def hosted():
    """app.py as a hosting service starts it: its address."""
    port = free_port()
    env = os.environ | {
        "PYTHONPATH": str(ROOT), "TURBOPRESS_DEVICE": "cpu", "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(600):
                if process.poll() is not None or _answers(f"http://127.0.0.1:{port}/"):
                    break
                time.sleep(0.1)
            assert process.poll() is None, process.stdout.read()
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()


def _answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_app_py_serves_the_page_when_it_is_started(hosted):
    with urllib.request.urlopen(hosted, timeout=10) as answer:
        page = answer.read().decode()
    assert "gradio" in page
    with urllib.request.urlopen(f"{hosted}config", timeout=10) as answer:
        config = json.load(answer)
    assert config["title"] == "turbopress"
    assert "examples/demo/base" in json.dumps(config["components"])
