"""What a hosting service starts: app.py, with the packages of requirements.txt."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from serving_process import free_port

ROOT = Path(__file__).parents[1]


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
