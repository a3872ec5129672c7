"""The chat page in headless Chromium, and what its buttons do without one."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving_process import free_port
from tiny_repository import WORDS, make_repository
from vision_models import write_llava

from serving.engine import Sampling
from serving.errors import ServingError
from serving.web.differences import marked, share_equal, tokens
from serving.web.offers import Offer, read_card
from serving.web.talk import Stops, answered, asked, side_by_side, spoken

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
HOT = Sampling(max_tokens=8, temperature=0)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; apt-get install chromium")


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


# --- without a browser


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


# --- in Chromium


@contextmanager
def opened(root, *models):
    """The page on these models; its address."""
    port = free_port()
    command = [sys.executable, "-m", "pipelines.cli", "web", *models, "--port", str(port)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "TURBOPRESS_DEVICE": "cpu", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == f"the page is at http://127.0.0.1:{port}; Ctrl-C ends it\n"
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page on two variants of a small repository."""
    with opened(make_repository(tmp_path_factory.mktemp("repository")), "base", "awq-w4") as place:
        yield place


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as browsers:
        chromium = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address):
    """A visitor's fresh page, whose console must stay without errors."""
    fresh = browser.new_page()
    fresh.set_default_timeout(60_000)
    faults = []
    fresh.on("pageerror", lambda error: faults.append(str(error)))
    fresh.goto(address)
    fresh.wait_for_selector("#message textarea")
    yield fresh
    fresh.close()
    assert faults == []


MESSAGES = "#conversation .message.user, #conversation .message.bot"
SETTLED = """([selector, count, old]) => {
  const texts = [...document.querySelectorAll(selector)].map(message => message.innerText.trim());
  const now = texts.join("\\n"), same = now === window.before;
  window.before = now;
  return texts.length === count && texts.every(text => text && text !== "Loading content") && now !== old && same;
}"""


def conversation(page, count, old=""):
    """The texts of the conversation once it has so many messages, is another than `old`, and has ceased to grow."""
    page.wait_for_function(SETTLED, arg=[MESSAGES, count, old], polling=1500)
    return [text.strip() for text in page.locator(MESSAGES).all_inner_texts()]


def limit(page, tokens):
    page.get_by_role("button", name="Parameters").click()
    page.get_by_label("number input for max_tokens").fill(str(tokens))


@needs_chromium
def test_a_visitor_talks_regenerates_and_clears(page):
    limit(page, 8)
    page.fill("#message textarea", "word100 word200")
    page.click("#send")
    said = conversation(page, 2)
    assert said[0] == "word100 word200"
    assert set(said[1].split()) <= set(WORDS)
    page.click("#again")
    again = conversation(page, 2, "\n".join(said))
    assert again[0] == said[0]
    page.click("#clear")
    page.wait_for_function("selector => !document.querySelector(selector)", arg=MESSAGES)


@needs_chromium
def test_stop_ends_a_long_answer(page):
    limit(page, 2048)
    page.fill("#message textarea", "word100")
    page.click("#send")
    page.wait_for_function("() => /word/.test(document.querySelector('#conversation .message.bot')?.innerText)")
    page.click("#stop")
    assert len(conversation(page, 2)[1].split()) < 2000


@needs_chromium
def test_a_visitor_shows_an_image_to_a_model_that_sees(browser, tmp_path):
    from PIL import Image

    write_llava(tmp_path / "llava")
    Image.effect_noise((40, 30), 90).convert("RGB").save(tmp_path / "noise.png")
    with opened(tmp_path, "./llava") as place:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(place)
        page.set_input_files("#message input[type=file]", tmp_path / "noise.png")
        page.wait_for_selector("#message img")
        limit(page, 6)
        page.fill("#message textarea", "word100 word200")
        page.click("#send")
        said = conversation(page, 2)
        page.close()
    assert said[0] == "🖼 word100 word200"
    assert set(said[1].split()) <= set(WORDS)


def said_to(page, text, count=2):
    page.fill("#message textarea", text)
    page.click("#send")
    return conversation(page, count)[-1]


@needs_chromium
def test_a_prompt_that_is_too_long_is_one_line_on_the_page(page):
    told = said_to(page, "word100 " * 80)
    assert re.fullmatch(r"⚠ prompt: has \d+ tokens and the model reads 64; shorten it", told)


@needs_chromium
def test_what_cannot_be_answered_is_one_line_on_the_page(browser, tmp_path):
    """A damaged image, an image for a model that sees none, an altered model, and one without a chat template."""
    from PIL import Image

    root = make_repository(tmp_path)
    write_llava(root / "llava")
    for name in ("altered", "mute"):
        shutil.copytree(root / "models" / "base", root / "models" / name)
    shard = next((root / "models" / "altered").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    (root / "models" / "mute" / "manifest.json").unlink()
    (root / "models" / "mute" / "chat_template.jinja").unlink(missing_ok=True)
    said = json.loads((root / "models" / "mute" / "tokenizer_config.json").read_text())
    said.pop("chat_template", None)
    (root / "models" / "mute" / "tokenizer_config.json").write_text(json.dumps(said))
    Image.effect_noise((40, 30), 90).convert("RGB").save(tmp_path / "noise.png")
    (tmp_path / "damaged.png").write_bytes((tmp_path / "noise.png").read_bytes()[:60])
    asked_of = [
        ("./llava", "damaged.png", "⚠ image: is damaged"),
        ("base", "noise.png", "⚠ base: takes no images; leave them out"),
        ("altered", None, "was altered"),
        ("mute", None, "⚠ chat: this model has no chat template"),
    ]
    with opened(root, *(model for model, _, _ in asked_of)) as place:
        for model, image, words in asked_of:
            page = browser.new_page()
            page.set_default_timeout(60_000)
            page.goto(place)
            page.wait_for_selector("#message textarea")
            if model != "./llava":
                page.click("#model input")
                page.get_by_role("option", name=model).click()
            if image:
                page.set_input_files("#message input[type=file]", tmp_path / image)
                page.wait_for_selector("#message img, #message [class*=thumbnail]")
            told = said_to(page, "word100 word200")
            page.close()
            assert told.startswith("⚠ "), (model, told)
            assert words in told, (model, told)


@needs_chromium
def test_the_card_and_the_figures_of_the_chosen_model_stand_beside_it(page):
    assert "The unchanged base model" in page.inner_text("#card")
    page.click("#model input")
    page.get_by_role("option", name="awq-w4").click()
    page.wait_for_selector("#card >> text=A quantized model")
    assert re.search(r"perplexity\s+12.5", page.inner_text("#card"))


@needs_chromium
def test_two_variants_answer_one_prompt_and_differences_are_marked(page):
    page.get_by_role("tab", name="Side by side").click()
    page.fill("#pair-prompt textarea", "word100 word200")
    page.click("#compare")
    page.wait_for_selector("#verdict >> text=of the tokens are the same", timeout=120_000)
    left, right = (page.inner_text(f"#{side}-answer").strip() for side in ("left", "right"))
    assert left
    assert right
    marks = page.locator("#left-answer mark, #right-answer mark").count()
    assert (marks == 0) == (left == right)
