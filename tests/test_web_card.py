"""What stands beside the conversation, in headless Chromium: a model's card, its figures, the table of all variants."""

import json
import re
import signal
import subprocess
import sys

import pytest
from browsing import ROOT, needs_chromium, opened, visit
from serving_process import KEY, Served, environment, free_port
from tiny_repository import make_repository

pytest_plugins = ["chromium"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A small repository whose reports `compare` has put in a table."""
    root = make_repository(tmp_path_factory.mktemp("repository"))
    told = [sys.executable, "-m", "pipelines.compare", "reports", "evaluations"]
    subprocess.run(told, cwd=root, env=environment({}), check=True, capture_output=True)
    return root


@needs_chromium
def test_the_card_and_the_figures_of_the_chosen_model_stand_beside_it(browser, repository):
    with opened(repository, "base", "awq-w4") as place, visit(browser, place) as page:
        page.wait_for_selector("#card >> text=The unchanged base model")
        page.click("#model input")
        page.get_by_role("option", name="awq-w4").click()
        page.wait_for_selector("#card >> text=A quantized model")
        assert re.search(r"perplexity\s+12.5", page.inner_text("#card"))


@needs_chromium
def test_the_table_on_the_page_says_what_the_reports_say(browser, repository):
    with opened(repository, "base") as place, visit(browser, place) as page:
        page.wait_for_selector("#table table")
        titles = page.locator("#table th").all_inner_texts()
        rows = [row.locator("td").all_inner_texts() for row in page.locator("#table tbody tr").all()]
    shown = {row[0].strip(): dict(zip(titles, row, strict=True)) for row in rows}
    assert list(shown) == ["base", "awq-w4"]
    for key, cells in shown.items():
        measured = json.loads((repository / "reports" / f"{key}.json").read_text())["metrics"]
        numbers = {title: float(re.sub(r"[^\d.+-]", "", text)) for title, text in list(cells.items())[2:]}
        assert numbers == {
            "parameters": measured["parameters"] / 1e6,
            "size": measured["size_bytes"] / 1e6,
            "bits a weight": measured["bits_per_weight"],
            "perplexity": measured["perplexity"],
            "against base": measured["perplexity_delta"],
            "KL, nats": measured["kl_nats"],
            "top-1 as base": 100 * measured["top1_agreement"],
        }


@needs_chromium
def test_the_card_of_what_a_server_serves_stands_beside_it(browser, repository, monkeypatch):
    monkeypatch.setenv("TURBOPRESS_API_KEY", KEY)
    here = environment({"TURBOPRESS_DEVICE": "cpu"})
    server = Served(repository, here, repository / "log", "awq-w4", "--engine", "transformers")
    address = f"http://127.0.0.1:{server.port}"
    try:
        with opened(repository, address) as place, visit(browser, place) as page:
            page.wait_for_selector("#card >> text=A quantized model")
            card = page.inner_text("#card")
    finally:
        server.end(signal.SIGTERM)
    assert card.startswith(f"{address} calls its model awq-w4. This stands here under that name:")
    assert re.search(r"perplexity\s+12.5", card)


@needs_chromium
def test_the_card_that_is_named_for_a_server_is_shown_whatever_the_server_says(browser, repository):
    address = f"http://127.0.0.1:{free_port()}"  # nobody is there
    for told, words in ((["--card", "awq-w4"], "A quantized model"), ([], f"No card: {address}: no answer")):
        with opened(repository, address, *told) as place, visit(browser, place) as page:
            page.wait_for_selector(f"#card >> text={words}")


def test_a_card_that_is_of_no_server_is_refused(repository):
    told = [sys.executable, "-m", "pipelines.cli", "web", "base", "--card", "awq-w4"]
    env = environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run(told, cwd=repository, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "turbopress: --card awq-w4: is of no server; give one for each http://HOST:PORT, or none\n"
