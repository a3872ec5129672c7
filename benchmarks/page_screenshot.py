"""The chat page as a visitor sees it, for the README: two variants, a conversation, and both side by side.

    python benchmarks/page_screenshot.py base awq-w4        # writes docs/chat.png and docs/side_by_side.png

Needs the extra [web], Chromium, and models/ as `dvc repro` makes them.
"""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
PROMPT = "Write a short story about a cat and a bird."
PATIENCE_MS = 180_000


def finished(page: Page, selector: str) -> None:
    """Waits until what is shown there has stopped growing."""
    page.wait_for_function(
        """selector => {
            const text = document.querySelector(selector)?.innerText ?? "";
            const same = text.length > 60 && text === window.before;
            window.before = text;
            return same;
        }""",
        arg=selector,
        timeout=PATIENCE_MS,
        polling=2500,
    )


def main(models: list[str]) -> None:
    """Starts the page, uses it, and keeps two pictures."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipelines.cli", "web", *models, "--port", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        print(server.stdout.readline(), end="")
        with sync_playwright() as browsers:
            browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1180, "height": 760})
            page.goto(f"http://127.0.0.1:{port}")
            page.fill("#message textarea", PROMPT, timeout=PATIENCE_MS)
            page.click("#send")
            finished(page, "#conversation")
            page.screenshot(path=ROOT / "docs" / "chat.png")
            page.get_by_role("tab", name="Side by side").click()
            page.fill("#pair-prompt textarea", PROMPT)
            page.click("#compare")
            page.wait_for_selector("#verdict >> text=of the tokens are the same", timeout=PATIENCE_MS)
            page.set_viewport_size({"width": 1180, "height": 720})
            page.screenshot(path=ROOT / "docs" / "side_by_side.png")
            browser.close()
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main(sys.argv[1:] or ["base", "awq-w4"])
