"""The chat page started as a process, and a visitor in headless Chromium, for the tests of what is on it."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving_process import free_port

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
MESSAGES = "#conversation .message.user, #conversation .message.bot"
SETTLED = """([selector, count, old]) => {
  const texts = [...document.querySelectorAll(selector)].map(message => message.innerText.trim());
  const now = texts.join("\\n"), same = now === window.before;
  window.before = now;
  return texts.length === count && texts.every(text => text && text !== "Loading content") && now !== old && same;
}"""
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


@contextmanager
def visit(browser, address):
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


def conversation(page, count, old=""):
    """The texts of the conversation once it has so many messages, is another than `old`, and has ceased to grow."""
    page.wait_for_function(SETTLED, arg=[MESSAGES, count, old], polling=1500)
    return [text.strip() for text in page.locator(MESSAGES).all_inner_texts()]


def limit(page, tokens):
    page.get_by_role("button", name="Parameters").click()
    page.get_by_label("number input for max_tokens").fill(str(tokens))


def said_to(page, text, count=2):
    page.fill("#message textarea", text)
    page.click("#send")
    return conversation(page, count)[-1]


def noise(folder):
    """An image of nothing."""
    from PIL import Image

    file = folder / "noise.png"
    Image.effect_noise((40, 30), 90).convert("RGB").save(file)
    return file


def shown(page, image):
    """Lays an image beside the message that is being written."""
    page.set_input_files("#message input[type=file]", image)
    page.wait_for_selector("#message img")


def compared(page, text, image=None):
    """Both answers to one prompt, and the line above them."""
    page.get_by_role("tab", name="Side by side").click()
    if image:
        page.set_input_files("#pair-prompt input[type=file]", image)
        page.wait_for_selector("#pair-prompt img")
    page.fill("#pair-prompt textarea", text)
    page.click("#compare")
    page.wait_for_selector("#verdict >> text=are the same", timeout=120_000)
    left, right = (page.inner_text(f"#{side}-answer").strip() for side in ("left", "right"))
    return left, right, page.inner_text("#verdict").strip()
