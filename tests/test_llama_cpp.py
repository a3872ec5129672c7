"""llama.cpp itself on our GGUF files: it reads as we do, says what our weights say, and is served."""

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
import torch
from formats import write_in_scheme
from llama_cpp_server import ask, benchmark, free_port, ids_of, llama_cpp
from sentencepiece_models import CHINESE, CODE, ENGLISH, texts, train
from serving_clients import leave_in_the_middle
from tiny import CONFIG, write_internlm2
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer

from compress.checkpoint.load import load_model
from compress.checkpoint.tokenizer import write_tokenizer
from compress.gguf import byte_level
from compress.gguf.write import SOURCE, export
from pipelines.stage import new_artifact
from registry.manifest import read
from serving.client import Client
from serving.engine import Sampling
from serving.errors import ServingError

pytest.importorskip("xllamacpp", reason="the extra [llama-cpp] is not installed")

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "demo" / "base"
KEY = "a-key-that-no-log-shows"
SERVE = (sys.executable, "-m", "pipelines.cli", "serve")
SIZES = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = CONFIG | SIZES | {"num_key_value_heads": 1, "vocab_size": 6144}
MARKUP = [
    "<|im_start|>user\n你好 123<|im_end|>\n", "a<s>b</s>c", "1234567890 3.14", "\n\n\n x\n", "你好，世界。",
    "<|im_start|> <|im_start|>x", "<0x0A>", "[UNUSED_TOKEN_5]", "𠮷 é ü 한국어 عربى",
]  # fmt: skip
TEXT = (
    "Once upon a time there was a little dog. It lived in a warm barn with 3 cats, and every day they played outside."
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo base in 4 bits, a sealed artifact: trained weights, so that agreement means something."""
    folder = tmp_path_factory.mktemp("demo") / "demo-w4"
    facts = {"recipe": {}, "parents": {}, "data": {}, "seed": None, "origin": {"source": "examples/demo/base"}}
    with new_artifact(folder, kind="quantized", **facts) as fresh:
        fresh.rmdir()
        write_in_scheme(DEMO, fresh, "awq-128", "llama")
        write_tokenizer(DEMO, fresh)
    return folder


@pytest.fixture(scope="module")
def demo_file(demo):
    file = demo.with_suffix(".gguf")
    export(demo, file, "demo")
    return file


@pytest.fixture(scope="module")
def demo_server(demo_file):
    with llama_cpp(demo_file) as address:
        yield address


# --- texts


def without_nul(pieces):
    """GGUF's strings cannot name NUL, so llama.cpp spells it as a byte."""
    return [text.replace("\0", "") for text in texts(pieces, 60)]


def test_it_reads_texts_as_we_do(demo, demo_server):
    tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
    pieces = [piece for piece in tokenizer.get_vocab() if not piece.startswith("<0x")]
    for text in MARKUP + without_nul(sorted(pieces)):
        assert ids_of(demo_server, text) == tokenizer.encode(text).ids, repr(text)


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_it_reads_with_and_without_a_space_in_front(tmp_path, dummy_prefix):
    proto = train(dummy_prefix=dummy_prefix)
    write_internlm2(tmp_path, SMALL | {"vocab_size": len(proto.pieces) + 3})  # three rows that no text reaches
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    write_tokenizer(tmp_path, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    export(tmp_path, tmp_path / "a.gguf", "a")
    with llama_cpp(tmp_path / "a.gguf") as address:
        for text in without_nul([piece.piece for piece in proto.pieces[259:]]):
            assert ids_of(address, text) == tokenizer.encode(text).ids, repr(text)


CUTS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(byte_level.LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


@pytest.mark.parametrize("cut", CUTS)
def test_it_reads_byte_level_texts_as_we_do(tmp_path, cut):
    tokenizer = Tokenizer(BPE(ignore_merges=cut == "llama-bpe"))
    tokenizer.pre_tokenizer = CUTS[cut]
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained = BpeTrainer(vocab_size=900, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([ENGLISH, CHINESE, CODE, TEXT] * 4, trained)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    said = {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    write_internlm2(tmp_path, SMALL | {"vocab_size": tokenizer.get_vocab_size()})
    export(tmp_path, tmp_path / "a.gguf", "a")
    with llama_cpp(tmp_path / "a.gguf") as address:
        for text in [*MARKUP, *without_nul(["word", "12"])]:
            assert ids_of(address, text) == tokenizer.encode(text).ids, repr(text)


def test_it_renders_a_conversation_as_we_do(demo, demo_server):
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好, who are you?"}]
    tokenizer = AutoTokenizer.from_pretrained(demo)
    ours = tokenizer.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
    answer = ask(demo_server, "/v1/chat/completions", messages=said, max_tokens=1)
    rendered = ask(demo_server, "/apply-template", messages=said)["prompt"]
    assert ids_of(demo_server, rendered) == ours
    assert answer["usage"]["prompt_tokens"] == len(ours)


# --- numbers


def test_its_perplexity_is_that_of_our_unpacked_weights(demo, demo_server, monkeypatch):
    """Before 4-bit weights llama.cpp rounds activations to 8 bits, so the two are near and not equal."""
    asker = benchmark(monkeypatch)
    ids = Tokenizer.from_file(str(demo / "tokenizer.json")).encode(TEXT).ids
    ours = asker.our_log_probabilities(load_model(demo), ids)
    found = asker.mean([asker.compared(ours, asker.engine_log_probabilities(demo_server, ids, 6144), ids)])
    assert abs(found["difference_nats"]) < 0.02
    assert found["kl_nats"] < 0.002
    assert found["top1_agreement"] >= 0.9


@pytest.mark.parametrize(
    "fields",
    [
        {"bias": True},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"tie_word_embeddings": True, "rope_theta": 10000.0},
    ],
    ids=str,
)
def test_a_float_model_computes_the_same(tmp_path, fields, monkeypatch):
    """Of float32 weights only the KV cache is rounded: heads, biases, RoPE and a tied head are where they belong."""
    asker, config = benchmark(monkeypatch), SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2} | fields
    write_internlm2(tmp_path, config)
    write_tokenizer(DEMO, tmp_path)
    export(tmp_path, tmp_path / "a.gguf", "a")
    ids = [1, *torch.randint(3, 6000, (12,), generator=torch.Generator().manual_seed(0)).tolist()]
    ours = asker.our_log_probabilities(load_model(tmp_path), ids)
    with llama_cpp(tmp_path / "a.gguf") as address:
        theirs = asker.engine_log_probabilities(address, ids, 6144)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
    assert (ours.exp() - theirs.exp()).abs().max() < 0.01


# --- serving


class Served:
    """A running `turbopress serve --engine llama.cpp`."""

    def __init__(self, model, log, *arguments):
        self.port, self.log = free_port(), log
        env = os.environ | {"PYTHONPATH": str(ROOT), "TURBOPRESS_API_KEY": KEY, "TMPDIR": str(log.parent)}
        command = [*SERVE, str(model), "--engine", "llama.cpp", "--port", str(self.port), *arguments]
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=log.parent, env=env, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.ready = self.process.stdout.readline()
        self.client = Client(f"http://127.0.0.1:{self.port}", key=KEY)

    def end(self, number):
        self.process.send_signal(number)
        with self.process:
            return self.process.wait(60)


@pytest.fixture(scope="module")
def served(demo, tmp_path_factory):
    server = Served(demo, tmp_path_factory.mktemp("log") / "server.log")
    assert server.ready, server.log.read_text()
    yield server
    assert server.end(signal.SIGTERM) == 0


def test_a_folder_is_served_by_the_same_verbs(served, demo):
    assert served.ready.startswith(f"{demo}: ready at http://127.0.0.1:{served.port}/v1, ")
    assert served.client.is_healthy()
    assert served.client.models() == ["demo-w4"]
    assert "".join(served.client.chat([{"role": "user", "content": "Tell me a story"}], Sampling(max_tokens=8)))
    greedy = Sampling(max_tokens=6, temperature=0)
    assert "".join(served.client.complete("Once upon a time", greedy)).startswith(",")


def test_the_key_is_asked_for_and_shown_to_nobody(served):
    with pytest.raises(ServingError, match="wants a key"):
        list(Client(served.client.address, key="another").complete("Once", Sampling(max_tokens=1)))
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _is_server(path, served.port)]
    assert lines
    assert not any(KEY.encode() in line for line in lines)
    assert KEY not in served.log.read_text()


def _is_server(path, port):
    try:
        return b"launch_llama_cpp" in (words := path.read_bytes()) and str(port).encode() in words
    except OSError:
        return False


def test_it_listens_on_loopback_only(served):
    listeners = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    places = {words[1] for words in listeners if words[3] == "0A"}
    assert [place.split(":")[0] for place in places if int(place.split(":")[1], 16) == served.port] == ["0100007F"]


def test_a_prompt_longer_than_the_session_is_one_line(served):
    with pytest.raises(ServingError, match=r"refused \(400\): .*exceeds the available context size"):
        list(served.client.complete("Once upon a time " * 1000, Sampling(max_tokens=2)))


def test_a_client_that_disconnects_leaves_the_server_well(served):
    leave_in_the_middle(served, "demo-w4", "Once", KEY, 900)


def test_a_signal_ends_the_server_and_leaves_no_file(demo, tmp_path):
    server = Served(demo, tmp_path / "log")
    assert server.ready, server.log.read_text()
    assert len(list(tmp_path.glob("turbopress-gguf-*/*.gguf"))) == 1
    assert server.end(signal.SIGINT) == 0
    assert not server.client.is_healthy()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_server_ends_with_whoever_started_it(demo_file, tmp_path):
    server = Served(demo_file, tmp_path / "log")
    assert server.ready, server.log.read_text()
    server.end(signal.SIGKILL)
    end = time.monotonic() + 20
    while server.client.is_healthy():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_file_is_named_after_the_artifact_that_it_was_made_from(demo, turbopress, tmp_path):
    from gguf import GGUFReader

    status, _, error = turbopress("gguf", demo, "--to", tmp_path / "a.gguf")
    assert status == 0, error
    assert GGUFReader(tmp_path / "a.gguf").fields[SOURCE].contents() == read(demo).digest


# --- what is refused


def refused(turbopress, model, *arguments):
    status, out, error = turbopress("serve", model, "--engine", "llama.cpp", "--port", free_port(), *arguments)
    assert (status, out) == (1, "")
    return error


def test_a_port_in_use_is_refused(demo_file, turbopress):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        status, _, error = turbopress("serve", demo_file, "--engine", "llama.cpp", "--port", port)
    assert status == 1
    assert (
        error == f"turbopress: 127.0.0.1:{port}: Address already in use; choose another --port, or end who holds it\n"
    )


def test_flags_of_lmdeploy_alone_are_refused(demo_file, turbopress):
    said = refused(turbopress, demo_file, "--kv", "int8", "--cache", "0.4")
    assert said == ("turbopress: --engine llama.cpp: does not hear --cache, --kv; leave it out, or serve by lmdeploy\n")


def test_a_session_longer_than_the_model_s_is_refused(demo, turbopress):
    said = refused(turbopress, demo, "--session-len", "4096").splitlines()
    assert said[-1] == f"turbopress: {demo}: session_len 4096 is longer than the model's 1024 positions"


def test_a_file_that_is_missing_or_none_is_refused(tmp_path, turbopress):
    place = tmp_path / "a.gguf"
    remedy = f"write one: turbopress gguf MODEL --to {place}"
    assert refused(turbopress, place) == f"turbopress: {place}: No such file or directory; {remedy}\n"
    place.write_bytes(b"GGML")
    assert refused(turbopress, place) == f"turbopress: {place}: is no GGUF file; {remedy}\n"


def test_a_truncated_file_is_quoted_as_llama_cpp_found_it(demo_file, tmp_path, turbopress):
    place = tmp_path / "a.gguf"
    place.write_bytes(demo_file.read_bytes()[:500_000])
    said = refused(turbopress, place).splitlines()[-1]
    assert said.startswith("turbopress: llama.cpp: ended with status 1 before it answered; its last words: ")
    assert "is not within the file bounds" in said


def test_without_llama_cpp_it_says_how_to_get_it(demo_file, turbopress, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    said = refused(turbopress, demo_file)
    assert said == "turbopress: llama.cpp: not installed; pip install 'turbopress[llama-cpp]'\n"


def test_an_altered_artifact_is_refused(demo, tmp_path, turbopress):
    shutil.copytree(demo, tmp_path / "altered")
    shard = next((tmp_path / "altered").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert f"{shard.name} was altered" in refused(turbopress, tmp_path / "altered")
