"""The chat page as a visitor meets it, in headless Chromium."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving_process import free_port
from tiny_repository import WORDS, make_repository
from vision_models import write_llava

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; apt-get install chromium")


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
