"""The chat page as a visitor meets it, in headless Chromium: talking to one model."""

import json
import re
import shutil

import pytest
from browsing import MESSAGES, conversation, limit, needs_chromium, noise, opened, said_to, shown, visit
from tiny_repository import WORDS, make_repository
from vision_models import write_internvl, write_llava

pytest_plugins = ["chromium"]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page on two variants of a small repository."""
    with opened(make_repository(tmp_path_factory.mktemp("repository")), "base", "awq-w4") as place:
        yield place


@pytest.fixture
def page(browser, address):
    with visit(browser, address) as fresh:
        yield fresh


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
    write_llava(tmp_path / "llava")
    with opened(tmp_path, "./llava") as place, visit(browser, place) as page:
        shown(page, noise(tmp_path))
        limit(page, 6)
        page.fill("#message textarea", "word100 word200")
        page.click("#send")
        said = conversation(page, 2)
    assert said[0] == "🖼 word100 word200"
    assert set(said[1].split()) <= set(WORDS)


@needs_chromium
def test_a_prompt_that_is_too_long_is_one_line_on_the_page(page):
    told = said_to(page, "word100 " * 80)
    assert re.fullmatch(r"⚠ prompt: has \d+ tokens and the model reads 64; shorten it", told)


@needs_chromium
def test_what_cannot_be_answered_is_one_line_on_the_page(browser, tmp_path):
    """A damaged image, an image for a model that sees none, an altered model, and one without a chat template."""
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
    (tmp_path / "damaged.png").write_bytes(noise(tmp_path).read_bytes()[:60])
    asked_of = [
        ("./llava", "damaged.png", "⚠ image: is damaged"),
        ("base", "noise.png", "⚠ base: takes no images; leave them out"),
        ("altered", None, "was altered"),
        ("mute", None, "⚠ chat: this model has no chat template"),
    ]
    with opened(root, *(model for model, _, _ in asked_of)) as place:
        for model, image, words in asked_of:
            with visit(browser, place) as page:
                if model != "./llava":
                    page.click("#model input")
                    page.get_by_role("option", name=model).click()
                if image:
                    page.set_input_files("#message input[type=file]", tmp_path / image)
                    page.wait_for_selector("#message img, #message [class*=thumbnail]")
                told = said_to(page, "word100 word200")
            assert told.startswith("⚠ "), (model, told)
            assert words in told, (model, told)


@needs_chromium
def test_a_published_internvl_takes_an_image_on_the_page_and_says_why_it_cannot_answer_here(browser, tmp_path):
    write_internvl(tmp_path / "internvl")
    with opened(tmp_path, "./internvl") as place, visit(browser, place) as page:
        shown(page, noise(tmp_path))
        page.fill("#message textarea", "word100 word200")
        page.click("#send")
        question, told = conversation(page, 2)
    assert question == "🖼 word100 word200"
    assert re.fullmatch(r"⚠ internvl: InternVLChatModel is a class that comes with .*`? ?give`?", told), told
