"""`turbopress serve`: what it refuses before it starts anything, and LMDeploy's real server once it has."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lmdeploy_environment import PROGRAM, emulated, executable, server_interpreter
from serving_clients import leave_in_the_middle
from tiny_repository import make_repository, write_base
from vision_models import write_internvl, write_llava

from compress.checkpoint.vision import give, take
from serving.client import Client
from serving.engine import Sampling, load_engine
from serving.errors import ServingError
from serving.profile import EngineProfile

ROOT = Path(__file__).parents[1]
KEY = "a-key-that-no-log-shows"
SERVE = (sys.executable, "-m", "pipelines.cli", "serve")
needs_lmdeploy = pytest.mark.skipif(not PROGRAM.is_dir(), reason="../shared/turbomind_check is not there")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def machine(tmp_path):
    """A machine with a GPU of 24 GiB, and with a Python that has no LMDeploy, which says so and ends."""
    executable(tmp_path / "nvidia-smi", "echo 'NVIDIA L4, 24576, 500'")
    executable(tmp_path / "python", "echo 'ModuleNotFoundError: no lmdeploy here'; exit 3")
    return environment({"PATH": f"{tmp_path}:{os.environ['PATH']}", "LMDEPLOY_PYTHON": str(tmp_path / "python")})


def environment(added):
    return os.environ | {"PYTHONPATH": str(ROOT)} | added


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def refused(repository, env, *arguments):
    """The one line with which `serve` ends."""
    done = subprocess.run([*SERVE, *arguments], cwd=repository, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    assert done.stdout == ""
    return done.stderr


# --- before anything is started


def test_without_a_gpu_it_says_what_works_instead(repository, tmp_path):
    here = environment({"PATH": str(tmp_path)})
    said = refused(repository, here, "awq-w4")
    assert said == (
        "turbopress: awq-w4: LMDeploy needs a GPU and this machine shows none; "
        "without one: turbopress serve awq-w4 --engine llama.cpp, or --engine transformers\n"
    )


def test_a_port_in_use_is_refused(repository, machine):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        said = refused(repository, machine, "awq-w4", "--port", str(port))
    assert said == f"turbopress: 127.0.0.1:{port}: Address already in use; choose another --port, or end who holds it\n"


def test_tp_that_does_not_divide_the_heads_is_refused_with_the_legal_ones(repository, machine):
    said = refused(repository, machine, "awq-w4", "--tp", "3")
    assert said == "turbopress: awq-w4: tp 3 does not divide 4 heads with 2 kv heads; legal are 1\n"
    said = refused(repository, machine, "base", "--tp", "3")
    assert said == "turbopress: base: tp 3 does not divide 4 heads with 2 kv heads; legal are 1, 2, 4\n"


def test_tp_that_leaves_the_kernels_too_little_is_refused_with_the_legal_ones(repository, machine):
    said = refused(repository, machine, "awq-w4", "--tp", "2")
    gives = "tp 2 gives down_proj 192 inputs a GPU, and its kernels take multiples of 128"
    assert said == f"turbopress: awq-w4: {gives}; legal are 1\n"


def test_more_gpus_than_there_are_is_refused(repository, machine):
    said = refused(repository, machine, "base", "--tp", "2")
    assert said == "turbopress: base: tp 2 needs 2 GPUs and there are 1; lower --tp\n"


def test_a_gpu_that_is_too_small_says_by_how_much_and_what_fits(repository, machine, tmp_path):
    executable(tmp_path / "nvidia-smi", "echo 'NVIDIA T4, 15360, 13000'")
    said = refused(repository, machine, "awq-w4", "--cache", "0.95", "--max-batch", "1024")
    assert said.count("\n") == 1
    assert "more than the 2.30 GiB free on NVIDIA T4" in said
    assert "this would fit: --cache 0.2 --kv none --tp 1" in said


def test_an_altered_artifact_is_refused(repository, machine, tmp_path):
    shutil.copytree(repository / "models" / "awq-w4", tmp_path / "altered")
    shard = next((tmp_path / "altered").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert f"{shard.name} was altered" in refused(repository, machine, str(tmp_path / "altered"))


def test_a_wrong_setting_in_params_yaml_is_refused(repository, machine, tmp_path):
    shutil.copytree(repository, tmp_path / "here")
    with (tmp_path / "here" / "params.yaml").open("a") as file:
        file.write("serve: {cache: 0.4}\n")
    said = refused(tmp_path / "here", machine, "awq-w4")
    assert said == "turbopress: params.yaml: serve.cache: unknown key; remove it or correct its spelling\n"


def test_a_flag_out_of_range_is_refused(repository, machine):
    assert "--cache: 1.5; choose a share between 0 and 1" in refused(repository, machine, "awq-w4", "--cache", "1.5")


@pytest.mark.parametrize(("card", "batch"), [("NVIDIA H200, 143771, 500", 1024), ("NVIDIA L4, 24576, 500", 128)])
def test_lmdeploy_is_told_the_batch_that_was_planned_for_the_card(repository, machine, tmp_path, card, batch):
    executable(tmp_path / "nvidia-smi", f"echo '{card}'")
    executable(tmp_path / "python", 'echo "$@"; exit 3')
    said = refused(repository, machine, "awq-w4", "--port", str(free_port()))
    assert f"--max-batch-size {batch} " in said


def test_a_server_that_dies_at_start_is_quoted(repository, machine):
    said = refused(repository, machine, "awq-w4", "--port", str(free_port())).splitlines()
    assert said[-1] == (
        "turbopress: lmdeploy: ended with status 3 before it answered; its last words: "
        "ModuleNotFoundError: no lmdeploy here"
    )


@pytest.mark.parametrize(
    ("write", "version", "ends"),
    [
        (write_llava, "5.20.2", True),
        (write_llava, "5.21.0", False),
        (write_llava, "4.57.1", False),
        (write_internvl, "5.20.2", False),
    ],
)
def test_an_environment_that_would_fail_at_each_image_is_refused(repository, machine, tmp_path, write, version, ends):
    """LLaVA's images alone go through a processor of transformers in LMDeploy's way."""
    whole, language, base, joined = (tmp_path / name for name in ("whole", "language", "base", "joined"))
    write(whole)
    for made in (language, joined):
        made.mkdir()
    take(whole, language)
    write_base(language, base)
    give(whole, base, joined)
    config = json.loads((joined / "config.json").read_text())
    config["torch_dtype"] = config["vision_config"]["torch_dtype"] = "float16"
    (joined / "config.json").write_text(json.dumps(config))
    executable(tmp_path / "python", f'test "$1" = -c && echo {version} || exit 3')
    told = f"transformers {version} reads the images that LMDeploy 0.18 shows a LLaVA with their axes mixed up"
    line = refused(repository, machine, str(joined))
    assert (told in line and "pip install 'transformers>=5.21'" in line) == ends
    assert ("ended with status 3" in line) == (not ends)


def test_an_engine_that_is_none_is_refused(repository, machine):
    said = refused(repository, machine, "awq-w4", "--engine", "vllm")
    assert said == "turbopress: --engine: vllm; choose lmdeploy, llama.cpp or transformers\n"


# --- without a GPU


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


def test_it_answers_whole_too(local):
    connection = http.client.HTTPConnection("127.0.0.1", local.port)
    body = {"model": "awq-w4", "messages": [{"role": "user", "content": "word100"}], "max_tokens": 4, "temperature": 0}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    (choice,) = json.loads(connection.getresponse().read())["choices"]
    connection.close()
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "stop"


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


# --- LMDeploy's own server


@pytest.fixture(scope="module")
def lmdeploy(tmp_path_factory):
    return environment(emulated(tmp_path_factory.mktemp("lmdeploy"), server_interpreter()))


class Served:
    """A running `turbopress serve`."""

    def __init__(self, repository, env, log, *arguments):
        self.port = free_port()
        self.log = log
        command = [*SERVE, *arguments, "--port", str(self.port), "--max-batch", "4"]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=repository, env=env, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.ready = self.process.stdout.readline()
        assert self.ready, log.read_text()
        self.client = Client(f"http://127.0.0.1:{self.port}", key=KEY)

    def end(self, number):
        """The exit status after a signal, and the seconds it took."""
        start = time.monotonic()
        self.process.send_signal(number)
        with self.process:  # closes its pipe
            return self.process.wait(60), time.monotonic() - start


@pytest.fixture(scope="module")
def served(repository, lmdeploy, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "server.log"
    server = Served(
        repository, lmdeploy | {"TURBOPRESS_API_KEY": KEY}, log, "awq-w4", "--session-len", "64", "--kv", "int8"
    )
    yield server
    server.end(signal.SIGTERM)


@needs_lmdeploy
def test_it_says_where_it_is_ready_and_what_it_takes(served):
    assert served.ready.startswith(f"awq-w4: ready at http://127.0.0.1:{served.port}/v1, takes ")
    assert served.client.models() == ["awq-w4"]


@needs_lmdeploy
def test_it_listens_on_loopback_only(served):
    listeners = Path("/proc/net/tcp").read_text().splitlines()[1:]
    places = {line.split()[1] for line in listeners if line.split()[3] == "0A"}
    assert [place.split(":")[0] for place in places if int(place.split(":")[1], 16) == served.port] == ["0100007F"]


@needs_lmdeploy
def test_the_engine_is_told_the_profile(served):
    line = next(line for line in Path("/proc").glob("[0-9]*/cmdline") if _is_server(line, served.port)).read_bytes()
    told = line.decode().split("\0")
    assert told[told.index("--quant-policy") + 1] == "8"
    assert told[told.index("--model-format") + 1] == "awq"
    assert told[told.index("--server-name") + 1] == "127.0.0.1"
    assert told[told.index("--max-batch-size") + 1] == "4"


def _is_server(path, port):
    try:
        words = path.read_bytes().decode().split("\0")
    except OSError:
        return False
    return "api_server" in words and str(port) in words


@needs_lmdeploy
def test_the_api_key_is_asked_for_and_shown_to_nobody(served):
    with pytest.raises(ServingError, match="wants a key"):
        Client(served.client.address, key="another").models()
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _is_server(path, served.port)]
    assert lines
    assert not any(KEY.encode() in line for line in lines)
    assert KEY not in served.log.read_text()


@needs_lmdeploy
def test_lmdeploy_answers_through_its_stream(served):
    """So fast over the emulated GPU that its pieces may arrive as one."""
    pieces = list(served.client.chat([{"role": "user", "content": "word100"}], Sampling(max_tokens=6)))
    assert len("".join(pieces).split()) == 6


@needs_lmdeploy
def test_a_prompt_longer_than_the_session_is_one_line(served):
    with pytest.raises(ServingError, match=r"refused \(400\): Input length .* context length \(64\)"):
        list(served.client.complete("word100 " * 80, Sampling(max_tokens=6)))


@needs_lmdeploy
def test_a_client_that_disconnects_leaves_the_server_well(served):
    leave_in_the_middle(served, "awq-w4", "word100", KEY, 40)


@needs_lmdeploy
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_and_then_us(repository, lmdeploy, tmp_path, number):
    server = Served(repository, lmdeploy, tmp_path / "log", "awq-w4", "--session-len", "64")
    status, elapsed_s = server.end(number)
    assert status == 0
    assert elapsed_s < 30
    assert not server.client.is_healthy()
    assert "Finished server process" in (tmp_path / "log").read_text()


@needs_lmdeploy
def test_a_server_that_cannot_load_the_model_is_quoted(repository, lmdeploy, tmp_path):
    shutil.copytree(repository / "models" / "awq-w4", tmp_path / "short")
    (tmp_path / "short" / "manifest.json").unlink()
    sorted((tmp_path / "short").glob("*.safetensors"))[1].unlink()
    said = refused(repository, lmdeploy, str(tmp_path / "short"), "--port", str(free_port())).splitlines()[-1]
    assert said.startswith("turbopress: lmdeploy: ")
    assert "before it answered; its last words: " in said
    assert "Error" in said
