"""`turbopress serve`: what it refuses before it starts anything, and servers that die."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys

import pytest
from lmdeploy_environment import executable
from serving_process import SERVE, environment, free_port, refused
from tiny_repository import make_repository, write_base
from vision_models import write_internvl, write_llava

from compress.checkpoint.vision import give, take
from serving.errors import ServingError
from serving.server import require_free


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def machine(tmp_path):
    """A machine with a GPU of 24 GiB, and with a Python that has no LMDeploy, which says so and ends."""
    executable(tmp_path / "nvidia-smi", "echo 'NVIDIA L4, 24576, 500, GPU-0'")
    executable(tmp_path / "python", "echo 'ModuleNotFoundError: no lmdeploy here'; exit 3")
    return environment({"PATH": f"{tmp_path}:{os.environ['PATH']}", "LMDEPLOY_PYTHON": str(tmp_path / "python")})


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


@pytest.mark.parametrize("verb", ["serve", "web"])
@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_a_port_that_is_none_is_refused(turbopress, verb, port):
    status, out, err = turbopress(verb, "awq-w4", "--port", port)
    assert (status, out) == (2, "")
    assert "--port" in err
    assert f"equal to {65535 if port else 1}" in " ".join(err.split())


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1", "a..b"])
def test_a_host_that_is_not_of_this_machine_is_named(host):
    with pytest.raises(ServingError, match=f"^--host {host}: .*; choose another --host: an address of this machine"):
        require_free(host, free_port())


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
    executable(tmp_path / "nvidia-smi", "echo 'NVIDIA T4, 15360, 13000, GPU-0'")
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


@pytest.mark.parametrize(
    ("card", "batch"), [("NVIDIA H200, 143771, 500, GPU-0", 1024), ("NVIDIA L4, 24576, 500, GPU-0", 128)]
)
def test_lmdeploy_is_told_the_batch_that_was_planned_for_the_card(repository, machine, tmp_path, card, batch):
    executable(tmp_path / "nvidia-smi", f"echo '{card}'")
    executable(tmp_path / "python", 'echo "$@"; exit 3')
    said = refused(repository, machine, "awq-w4", "--port", str(free_port()))
    assert f"--max-batch-size {batch} " in said


def test_a_dry_run_prints_the_command_and_starts_nothing(repository, tmp_path):
    command = [*SERVE, "awq-w4", "--dry-run", "--kv", "int8", "--host", "::1"]
    here = environment({"PATH": str(tmp_path)})  # neither a GPU nor LMDeploy
    done = subprocess.run(command, cwd=repository, env=here, capture_output=True, text=True, check=True)
    told = shlex.split(done.stdout)
    assert told[:3] == ["lmdeploy", "serve", "api_server"]
    assert told[told.index("--quant-policy") + 1] == "8"
    assert told[told.index("--server-name") + 1] == "::1"
    said = refused(repository, here, "awq-w4", "--dry-run", "--engine", "transformers")
    assert said.startswith("turbopress: --dry-run: prints LMDeploy's command line, and transformers has none")


DIES_SERVING = """import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *said): pass
server = HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--server-port") + 1])), Healthy)
server.handle_request()
print("RuntimeError: CUDA error: misaligned address", flush=True)
print("goodbye", flush=True)
sys.exit(7)
"""


def test_a_server_that_dies_while_it_serves_is_quoted(repository, machine, tmp_path):
    (tmp_path / "dies.py").write_text(DIES_SERVING)
    executable(tmp_path / "python", f'exec {sys.executable} {tmp_path / "dies.py"} "$@"')
    command = [*SERVE, "awq-w4", "--port", str(free_port())]
    done = subprocess.run(command, cwd=repository, env=machine, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("awq-w4: ready at ")
    assert done.stderr.splitlines()[-1] == (
        "turbopress: lmdeploy: ended with status 7 while it served; its last words: "
        "RuntimeError: CUDA error: misaligned address"
    )


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


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--kv", "int8", "--cache", "0.4", "--tp", "2"), "--cache, --kv, --tp"),
        (("--session-len", "32"), "--session-len"),
        (("--max-batch", "2", "--prefix-caching"), "--max-batch, --prefix-caching"),
    ],
)
def test_what_transformers_would_not_hear_is_refused(repository, machine, flags, told):
    said = refused(repository, machine, "awq-w4", "--engine", "transformers", *flags, "--port", str(free_port()))
    assert said == (f"turbopress: --engine transformers: does not hear {told}; leave it out, or serve by lmdeploy\n")
