"""`turbopress serve --engine transformers`: the OpenAI protocol over a model in its process, nothing else needed."""

import dataclasses
import http.client
import json
import signal
import time

import pytest
from fastapi.testclient import TestClient
from serving_process import KEY, Served, environment
from tiny_repository import make_repository

from serving.client import Client
from serving.engine import Sampling, load_engine
from serving.errors import ServingError
from serving.local_server import build
from serving.profile import EngineProfile


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def local(repository, tmp_path_factory):
    """`turbopress serve --engine transformers`, which needs neither LMDeploy nor a GPU."""
    log = tmp_path_factory.mktemp("log") / "local.log"
    here = environment({"TURBOPRESS_API_KEY": KEY, "TURBOPRESS_DEVICE": "cpu"})
    server = Served(repository, here, log, "awq-w4", "--engine", "transformers")
    while not server.client.is_healthy():
        assert server.process.poll() is None
        time.sleep(0.1)
    yield server
    server.end(signal.SIGTERM)


def test_the_served_answer_is_that_of_the_folder(local, repository, monkeypatch):
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    here = load_engine(repository / "models" / "awq-w4", EngineProfile(), "transformers")
    said, greedy = [{"role": "user", "content": "word100 word200"}], Sampling(max_tokens=8, temperature=0)
    assert local.ready.startswith(f"awq-w4: ready at http://127.0.0.1:{local.port}/v1")
    assert local.client.models() == ["awq-w4"]
    assert "".join(local.client.chat(said, greedy)) == "".join(here.chat(said, greedy))
    assert "".join(local.client.complete("word100", greedy)) == "".join(here.complete("word100", greedy))


def test_the_model_is_called_as_whoever_started_the_server_called_it(repository, monkeypatch):
    """The files of NAME@ALIAS lie in a folder of another name."""
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    engine = load_engine(repository / "models" / "awq-w4", EngineProfile(), "transformers")
    here = TestClient(build(engine, None, "demo@awq-w4"))
    said = {"messages": [{"role": "user", "content": "word100"}], "max_tokens": 2}
    assert [model["id"] for model in here.get("/v1/models").json()["data"]] == ["demo@awq-w4"]
    assert here.post("/v1/chat/completions", json=said).json()["model"] == "demo@awq-w4"


def asked(local, path, body):
    """What the server sends, whole."""
    connection = http.client.HTTPConnection("127.0.0.1", local.port)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", path, json.dumps({"model": "awq-w4", "temperature": 0} | body), headers)
    said = connection.getresponse().read().decode()
    connection.close()
    return said


def test_it_answers_whole_too_and_says_that_the_answer_was_cut_and_what_it_took(local):
    said = [{"role": "user", "content": "word100"}]
    told = json.loads(asked(local, "/v1/chat/completions", {"messages": said, "max_tokens": 4}))
    (choice,), usage = told["choices"], told["usage"]
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    assert usage["completion_tokens"] == 4
    assert usage["prompt_tokens"] > 1  # its markup counts
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4
    text = json.loads(asked(local, "/v1/completions", {"prompt": "word100 word200", "max_tokens": 3}))
    assert text["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_a_stream_ends_with_its_reason_and_where_asked_with_what_it_took(local):
    body = {"prompt": "word100", "max_tokens": 5, "stream": True}
    plain = asked(local, "/v1/completions", body)
    counted = asked(local, "/v1/completions", body | {"stream_options": {"include_usage": True}})
    events = [
        [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")] for text in (plain, counted)
    ]
    assert events[0][-1]["choices"][0]["finish_reason"] == "length"
    assert not any("usage" in event for event in events[0])
    *pieces, last = events[1]
    assert all(event["usage"] is None for event in pieces)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 5)


def test_an_answer_that_ends_by_itself_says_so(repository, monkeypatch):
    """Every token ends it here: the first is its last."""
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    engine = load_engine(repository / "models" / "awq-w4", EngineProfile(), "transformers")
    every = dataclasses.replace(engine.speaker, stop_ids=list(range(512)))
    here = TestClient(build(dataclasses.replace(engine, speaker=every), None))
    told = here.post("/v1/completions", json={"prompt": "word100", "temperature": 0}).json()
    assert told["choices"][0]["finish_reason"] == "stop"
    assert told["usage"]["completion_tokens"] == 1


def test_it_asks_for_the_key_and_refuses_what_it_cannot_answer(local):
    with pytest.raises(ServingError, match="wants a key"):
        Client(local.client.address, key="another").models()
    with pytest.raises(ServingError, match=r"refused \(400\): .*holds no token"):
        list(local.client.complete("", Sampling(max_tokens=4)))
    with pytest.raises(ServingError, match=r"refused \(400\): prompt: has \d+ tokens and the model reads 64"):
        list(local.client.complete("word100 " * 80, Sampling(max_tokens=4)))
    assert local.client.models() == ["awq-w4"]


def test_a_client_that_goes_away_stops_its_answer(local):
    answer = local.client.complete("word100", Sampling(max_tokens=2000, temperature=0))
    next(answer)
    answer.close()
    start = time.monotonic()
    assert "".join(local.client.complete("word100", Sampling(max_tokens=4)))  # one at a time: it waits for the other
    assert time.monotonic() - start < 20
