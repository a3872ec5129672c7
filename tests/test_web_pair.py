"""Two variants on one prompt, as a visitor sees them in headless Chromium: what is marked, and what images they see."""

import signal

import pytest
from browsing import compared, limit, needs_chromium, opened, visit
from serving_process import KEY, Served, environment
from tiny_repository import make_repository
from vision_models import write_llava, write_llava_next

from serving import pipeline

pytest_plugins = ["chromium"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


@needs_chromium
def test_two_variants_answer_one_prompt_and_what_differs_is_marked_by_tokens(browser, repository):
    with opened(repository, "base", "awq-w4") as place, visit(browser, place) as page:
        left, right, verdict = compared(page, "word100 word200")
        marks = page.locator("#left-answer mark, #right-answer mark").count()
    assert left
    assert right
    assert (marks == 0) == (left == right)
    assert verdict.endswith(
        "% of the tokens are the same; what differs is marked. Both are cut by the tokenizer of base."
    )


@needs_chromium
def test_of_a_server_whose_model_is_unknown_here_words_are_compared_and_the_page_says_so(
    browser, repository, monkeypatch
):
    monkeypatch.setenv("TURBOPRESS_API_KEY", KEY)
    here = environment({"TURBOPRESS_DEVICE": "cpu"})
    server = Served(repository, here, repository / "log", "./source", "--engine", "transformers")
    try:
        addresses = (f"http://127.0.0.1:{server.port}", f"http://localhost:{server.port}")
        with opened(repository, *addresses) as place, visit(browser, place) as page:
            left, right, verdict = compared(page, "word100 word200")
    finally:
        server.end(signal.SIGTERM)
    assert left == right
    assert verdict == (
        "100 % of the words are the same; what differs is marked. "
        "Words are compared, because neither model's tokenizer is here."
    )


@needs_chromium
def test_two_models_that_see_are_shown_one_image(browser, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    folders = write_llava(tmp_path / "llava"), write_llava_next(tmp_path / "next")
    Image.radial_gradient("L").resize((40, 30)).convert("RGB").save(tmp_path / "disc.png")
    with opened(tmp_path, "./llava", "./next") as place, visit(browser, place) as page:
        limit(page, 24)
        *answers, _ = compared(page, "word100 word200", tmp_path / "disc.png")
    pipes = [pipeline(folder, engine="transformers") for folder in folders]
    seen, blind = ([pipe("word100 word200", images=shown, max_tokens=24).text.strip() for pipe in pipes]
                   for shown in ([tmp_path / "disc.png"], []))  # fmt: skip
    assert answers == seen
    assert all(one != other for one, other in zip(seen, blind, strict=True))
