"""LMDeploy's real server under `turbopress serve`, on an emulated GPU: its HTTP, how it lives and dies."""

import http.client
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from lmdeploy_environment import PROGRAM, emulated, server_interpreter
from serving_clients import leave_in_the_middle
from serving_process import KEY, Served, environment, free_port, is_server, refused
from tiny_repository import make_repository

from serving.client import Client
from serving.engine import Sampling
from serving.errors import ServingError

pytestmark = pytest.mark.skipif(not PROGRAM.is_dir(), reason="../shared/turbomind_check is not there")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def lmdeploy(tmp_path_factory):
    return environment(emulated(tmp_path_factory.mktemp("lmdeploy"), server_interpreter()))


@pytest.fixture(scope="module")
def served(repository, lmdeploy, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server.log"
    server = Served(
        repository, lmdeploy | {"TURBOPRESS_API_KEY": KEY}, log, "awq-w4", "--session-len", "64", "--kv", "int8"
    )
    yield server
    server.end(signal.SIGTERM)


def test_it_says_where_it_is_ready_and_what_it_takes(served):
    assert served.ready.startswith(f"awq-w4: ready at http://127.0.0.1:{served.port}/v1, takes ")
    assert served.client.models() == ["awq-w4"]


def test_it_listens_on_loopback_only(served):
    listeners = Path("/proc/net/tcp").read_text().splitlines()[1:]
    places = {line.split()[1] for line in listeners if line.split()[3] == "0A"}
    assert [place.split(":")[0] for place in places if int(place.split(":")[1], 16) == served.port] == ["0100007F"]


def test_the_engine_is_told_the_profile(served):
    line = next(line for line in Path("/proc").glob("[0-9]*/cmdline") if is_server(line, served.port)).read_bytes()
    told = line.decode().split("\0")
    assert told[told.index("--quant-policy") + 1] == "8"
    assert told[told.index("--model-format") + 1] == "awq"
    assert told[told.index("--server-name") + 1] == "127.0.0.1"
    assert told[told.index("--max-batch-size") + 1] == "4"


def test_the_api_key_is_asked_for_and_shown_to_nobody(served):
    with pytest.raises(ServingError, match="wants a key"):
        Client(served.client.address, key="another").models()
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if is_server(path, served.port)]
    assert lines
    assert not any(KEY.encode() in line for line in lines)
    assert KEY not in served.log.read_text()


def test_lmdeploy_answers_through_its_stream(served):
    """So fast over the emulated GPU that its pieces may arrive as one."""
    pieces = list(served.client.chat([{"role": "user", "content": "word100"}], Sampling(max_tokens=6)))
    assert len("".join(pieces).split()) == 6


def test_a_prompt_longer_than_the_session_is_one_line(served):
    with pytest.raises(ServingError, match=r"refused \(400\): Input length .* context length \(64\)"):
        list(served.client.complete("word100 " * 80, Sampling(max_tokens=6)))


def test_a_client_that_disconnects_leaves_the_server_well(served):
    leave_in_the_middle(served, "awq-w4", "word100", KEY, 40)


@pytest.fixture(scope="module")
def long(repository, lmdeploy, tmp_path_factory):
    """LMDeploy with one slot, on a model whose answers may be long."""
    folder = tmp_path_factory.mktemp("long") / "base"
    shutil.copytree(repository / "models" / "base", folder)
    (folder / "manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 200_000}
    (folder / "config.json").write_text(json.dumps(config))
    server = Served(repository, lmdeploy, folder.with_name("log"), str(folder), "--max-batch", "1")
    yield server
    server.end(signal.SIGTERM)


def test_a_client_that_disconnects_frees_its_slot(long):
    """One slot: the second answer waits for as long as the first is listened to, and comes once that is not."""
    connection = http.client.HTTPConnection("127.0.0.1", long.port)
    body = {"model": "base", "prompt": "word100", "stream": True, "max_tokens": 190_000, "ignore_eos": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.readline().startswith(b"data:")
    said = []
    second = threading.Thread(
        target=lambda: said.append("".join(long.client.complete("word200", Sampling(max_tokens=4)))), daemon=True
    )
    second.start()
    second.join(2)
    assert said == []  # the slot is held
    connection.close()
    second.join(30)
    assert len(said) == 1
    assert long.process.poll() is None


def test_a_server_that_is_killed_while_it_serves_is_an_error_that_says_so(repository, lmdeploy, tmp_path):
    server = Served(repository, lmdeploy, tmp_path / "log", "awq-w4", "--session-len", "64")
    line = next(line for line in Path("/proc").glob("[0-9]*/cmdline") if is_server(line, server.port))
    os.kill(int(line.parent.name), signal.SIGKILL)
    with server.process:
        assert server.process.wait(60) == 1
    assert "turbopress: lmdeploy: was killed by SIGKILL while it served; its last words: " in server.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_and_then_us(repository, lmdeploy, tmp_path, number):
    server = Served(repository, lmdeploy, tmp_path / "log", "awq-w4", "--session-len", "64")
    status, elapsed_s = server.end(number)
    assert status == 0
    assert elapsed_s < 30
    assert not server.client.is_healthy()
    assert "Finished server process" in (tmp_path / "log").read_text()


def test_a_server_that_cannot_load_the_model_is_quoted(repository, lmdeploy, tmp_path):
    shutil.copytree(repository / "models" / "awq-w4", tmp_path / "short")
    (tmp_path / "short" / "manifest.json").unlink()
    sorted((tmp_path / "short").glob("*.safetensors"))[1].unlink()
    said = refused(repository, lmdeploy, str(tmp_path / "short"), "--port", str(free_port())).splitlines()[-1]
    assert said.startswith("turbopress: lmdeploy: ")
    assert "before it answered; its last words: " in said
    assert "Error" in said
