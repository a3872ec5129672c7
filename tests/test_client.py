"""Talking to a real OpenAI-protocol server (transformers' own), in this process, and through `pipeline`."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from real_server import transformers_server
from tiny_repository import WORDS, make_repository, write_params

from pipelines import chat
from serving import pipeline
from serving.client import Client
from serving.engine import Sampling, load_engine
from serving.errors import ServingError
from serving.images import data_url, user_message
from serving.profile import EngineProfile

ROOT = Path(__file__).parents[1]
GREEDY = Sampling(max_tokens=8, temperature=0)
SAID = [{"role": "user", "content": "word100 word200"}]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    with transformers_server(repository / "models" / "base", tmp_path_factory.mktemp("log") / "log") as address:
        yield address


@pytest.fixture
def engine(repository, monkeypatch):
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    return load_engine(repository / "models" / "base", EngineProfile(), "transformers")


@pytest.fixture
def turbopress(repository, monkeypatch):
    monkeypatch.chdir(repository)

    def run(*arguments, said=""):
        command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
        env = os.environ | {"PYTHONPATH": str(ROOT), "TURBOPRESS_DEVICE": "cpu"}
        done = subprocess.run(command, env=env, input=said, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


# --- a server


def test_the_served_answer_is_the_one_of_the_folder_in_this_process(server, repository, engine):
    served = Client(server, str(repository / "models" / "base"))
    assert "".join(served.chat(SAID, GREEDY)).split() == "".join(engine.chat(SAID, GREEDY)).split()


def test_an_answer_comes_in_pieces_and_may_be_stopped(server, repository):
    client = Client(server, str(repository / "models" / "base"))
    answer = client.chat(SAID, Sampling(max_tokens=40, temperature=0))
    assert next(answer)
    answer.close()
    assert "".join(client.chat(SAID, GREEDY))


def test_the_terminal_talks_to_a_server_and_remembers_until_reset(server, repository, turbopress):
    arguments = ("chat", server, "--name", repository / "models" / "base", "--temperature", "0", "--max-tokens", "8")
    status, out, err = turbopress(*arguments, said="word100 word200\n/reset\nword100 word200\n")
    assert (status, err) == (0, "")
    first, second = [line.strip() for line in out.split(">") if line.strip()]
    assert first == second


def test_a_conversation_goes_on_from_what_was_said(turbopress):
    arguments = ("chat", "base", "--temperature", "0", "--max-tokens", "8")
    _, out, _ = turbopress(*arguments, said="word100 word200\nword100 word200\n")
    first, second = [line.strip() for line in out.split(">") if line.strip()]
    assert first != second  # the second prompt has the first turn before it


def test_a_system_prompt_changes_the_answer(engine):
    plain, told = (
        "".join(engine.chat(said, GREEDY)) for said in (SAID, [{"role": "system", "content": "word7"}, *SAID])
    )
    assert plain != told


def test_nobody_at_the_address_is_one_line(turbopress):
    status, out, err = turbopress("chat", "http://127.0.0.1:9", "hello")
    assert (status, out) == (1, "")
    said = "turbopress: http://127.0.0.1:9: no answer ([Errno 111] Connection refused)"
    assert err == f"{said}; start one: turbopress serve MODEL\n"


@pytest.mark.parametrize("port", ["99999", "http"])
def test_an_address_with_a_port_that_is_none_is_one_line(port):
    with pytest.raises(ServingError, match=rf"^http://127.0.0.1:{port}: Port .*; write http://HOST:PORT$"):
        Client(f"http://127.0.0.1:{port}", "model").models()


def test_a_server_that_goes_away_in_the_middle_is_one_line():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "model")
        answer = client.chat(SAID, GREEDY)
        threading.Thread(target=_half_an_answer, args=(listener,), daemon=True).start()
        assert next(answer) == "half"
        with pytest.raises(ServingError, match="went away in the middle of an answer"):
            next(answer)


def _half_an_answer(listener):
    connection, _ = listener.accept()
    connection.recv(65536)
    event = b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.sendall(head + f"{len(event):x}\r\n".encode() + event + b"\r\n")
    connection.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--image", "x.png"), "--image: is for one prompt; write it behind the model"),
        (("--json",), "--json: is for one prompt; write it behind the model"),
        (("word100", "--raw", "--image", "x.png"), "--raw --image: a text without chat markup has no place for it"),
        (("word100", "--raw", "--system", "be brief"), "--raw --system: a text without chat markup has no place"),
        (("word100", "--name", "other"), "--name other: is for a server that has several models, and base is one"),
    ],
)
def test_what_chat_would_not_hear_is_refused(turbopress, arguments, said):
    status, out, err = turbopress("chat", "base", *arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"turbopress: {said}")


def test_an_engine_for_a_server_that_has_its_own_is_refused(turbopress):
    status, _, err = turbopress("chat", "http://127.0.0.1:9", "word100", "--engine", "transformers")
    assert status == 1
    assert err == "turbopress: --engine transformers: the server at http://127.0.0.1:9 has its own; leave it out\n"


def test_a_model_in_this_process_is_told_what_params_yaml_says(repository, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(chat, "load_engine", lambda folder, profile, kind: told.append(profile))
    write_params(tmp_path, serve={"cache_max_entry_count": 0.3})
    (tmp_path / "models").symlink_to(repository / "models")
    monkeypatch.chdir(tmp_path)
    chat.open_engine("base")
    assert told == [EngineProfile(cache_max_entry_count=0.3)]


# --- pipeline


def test_pipeline_refuses_what_it_would_not_hear(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    pipe = pipeline(repository / "models" / "base", engine="transformers")
    with pytest.raises(ServingError, match="raw: continues a text as it stands"):
        pipe("word100", raw=True, images=[tmp_path / "x.png"])
    with pytest.raises(ServingError, match="raw: continues a text as it stands"):
        pipe(SAID, raw=True)
    with pytest.raises(ServingError, match="images: go with a text"):
        pipe(SAID, images=[tmp_path / "x.png"])


def test_pipeline_answers_a_prompt_a_list_and_a_conversation(repository, monkeypatch):
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    pipe = pipeline(repository / "models" / "awq-w4", engine="transformers")
    one = pipe("word100 word200", max_tokens=8, temperature=0)
    many = pipe(["word100 word200", "word300"], max_tokens=8, temperature=0)
    assert set(one.text.split()) <= set(WORDS)
    assert many[0] == one
    assert len(many) == 2
    assert "".join(pipe.stream(SAID, max_tokens=8, temperature=0)) == one.text
    assert pipe("word100 word200", raw=True, max_tokens=8, temperature=0).text


def test_pipeline_refuses_an_altered_artifact(repository, tmp_path):
    shutil.copytree(repository / "models" / "awq-w4", tmp_path / "altered")
    shard = next((tmp_path / "altered").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ServingError, match=f"{shard.name} was altered"):
        pipeline(tmp_path / "altered", engine="transformers")


def test_pipeline_talks_to_a_server(server, repository):
    pipe = pipeline(server)
    pipe.engine = Client(server, str(repository / "models" / "base"))
    assert pipe("word100", max_tokens=4, temperature=0).text


def test_an_answer_in_this_process_may_be_stopped(engine):
    answer = engine.complete("word100", Sampling(max_tokens=50, temperature=0))
    next(answer)
    answer.close()  # waits for the thread that speaks: its next token is its last
    assert not [thread for thread in threading.enumerate() if thread.name == "speaker"]


def test_an_engine_that_is_not_installed_is_named(repository):
    with pytest.raises(ServingError, match="engine vllm: is not installed; choose lmdeploy or transformers"):
        load_engine(repository / "models" / "base", EngineProfile(), "vllm")


def test_lmdeploy_that_cannot_be_imported_says_how_to_get_it(repository):
    with pytest.raises(ServingError, match="pip install 'turbopress"):
        load_engine(repository / "models" / "base", EngineProfile(), "lmdeploy")


# --- images


def test_an_image_travels_in_the_message(tmp_path):
    from PIL import Image

    Image.new("RGB", (2, 2), "red").save(tmp_path / "red.png")
    image, text = user_message("what is it?", [tmp_path / "red.png"])["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert text == {"type": "text", "text": "what is it?"}


def test_what_is_no_image_is_refused(tmp_path, engine):
    (tmp_path / "text.png").write_text("no")
    with pytest.raises(ServingError, match="is no PNG, JPEG or WebP"):
        data_url(tmp_path / "text.png")
    with pytest.raises(ServingError, match="cannot be read"):
        data_url(tmp_path / "nothing.png")
    with pytest.raises(ServingError, match="takes no images"):
        engine.chat([{"role": "user", "content": [{"type": "text", "text": "see?"}]}], GREEDY)
