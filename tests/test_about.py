"""What the page tells of a model behind an address: what stands here under its name, or why nothing does."""

import shutil
import threading

import pytest
import uvicorn
from serving_process import free_port
from tiny_repository import make_repository

from pipelines.about import about_served
from registry.publish import publish
from registry.report import read_report
from serving.local_server import build

pytest_plugins = ["fake_stores"]


class Silent:
    """A model whose name alone is asked for."""

    def __init__(self, name):
        self.name = name


@pytest.fixture
def served(monkeypatch):
    """Starts our server on a model of this name; its address."""
    monkeypatch.delenv("TURBOPRESS_API_KEY", raising=False)
    started = []

    def start(name):
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(build(Silent(name), None), port=port, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        started.append((server, thread))
        while not server.started:
            thread.join(0.05)
        return f"http://127.0.0.1:{port}"

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join()


@pytest.fixture
def repository(root, monkeypatch):
    make_repository(root)
    monkeypatch.chdir(root)
    return root


def test_a_variant_s_name_shows_its_card_and_figures(served, repository):
    address = served("awq-w4")
    about = about_served(address)
    assert about.card.startswith(f"{address} calls its model `awq-w4`. This stands here under that name:\n\n")
    assert "| perplexity | 12.5 |" in about.card
    assert about.folder == repository / "models" / "awq-w4"
    assert about.tokenizer.get_vocab_size() > 0


def test_a_registered_version_s_name_shows_the_card_of_its_files(served, repository):
    publish(repository / "models" / "awq-w4", read_report(repository / "reports" / "awq-w4.json"), root=repository,
            model="demo", variant="awq-w4")  # fmt: skip
    shutil.rmtree(repository / "models" / "awq-w4")
    about = about_served(served("demo@awq-w4"))
    assert about.folder.is_relative_to(repository / "mlartifacts")
    assert "A quantized model" in about.card
    refused = about_served(served("demo@champion"))
    assert "demo@champion: no such version; aliases: @awq-w4" in refused.card
    assert refused.folder is None


@pytest.mark.parametrize("name", ["gpt-x", "../source", "source", "not-made-yet"])
def test_any_other_name_opens_no_folder_and_the_page_says_so(served, repository, name):
    address = served(name)
    told = "No variant or registered version of that name is on this machine; --card says what it is"
    assert about_served(address).card == f"No card: {address} calls its model `{name}`. {told}"
    assert about_served(address).folder is None


def test_without_a_server_and_outside_a_repository_the_page_says_so(served, tmp_path, monkeypatch):
    address = f"http://127.0.0.1:{free_port()}"
    assert about_served(address).card.startswith(f"No card: {address}: no answer (")
    monkeypatch.chdir(tmp_path)
    assert "no params.yaml here or above" in about_served(served("awq-w4")).card
