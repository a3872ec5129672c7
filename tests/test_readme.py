"""The page that a newcomer reads says what the files say, and names what is there."""

import importlib.util
import re
from pathlib import Path

import yaml
from typer.testing import CliRunner

from pipelines.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf8")


def renderer():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_figure_is_the_one_in_the_measured_files():
    module = renderer()
    assert set(module.SECTIONS) == set(re.findall(r"<!-- (\w+)", README)) - {"end"}
    assert module.render(README) == README


def test_the_table_has_a_row_for_every_variant_of_params_yaml():
    params = yaml.safe_load((ROOT / "params.yaml").read_text("utf8"))
    keys = ["base", *params["prune"], *params["distill"], *params["quantize"]]
    rows = [line.split("|")[1].strip() for line in README.splitlines() if line.startswith("| ")]
    assert all(key in rows for key in keys)


def test_every_link_and_picture_is_in_the_repository():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_link_and_picture_of_the_pages_about_serving_is_there():
    page = ROOT / "docs" / "serving.md"
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text("utf8"))
    assert {"chat.png", "memory.png"} <= set(links)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_command_it_shows_exists_with_these_options():
    shown = re.findall(r"^turbopress ((?:vision )?\w+)([^#\n]*)", README, re.MULTILINE)
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {name for name, _ in shown} == verbs | {"vision take", "vision give"}
    for name, arguments in shown:
        text = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
        options = re.findall(r"--[a-z-]+", arguments)
        assert [option for option in options if option not in text] == []
