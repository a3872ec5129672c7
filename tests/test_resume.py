"""A quantization that was killed goes on where it was, to the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from tiny import CONFIG, windows, write_internlm2

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.quantize.fp8 import quantize_to_fp8
from compress.quantize.host import free_memory, memory_limit
from compress.quantize.int8 import quantize_to_int8
from compress.quantize.journal import Journal
from compress.quantize.recipe import AwqRecipe, Learned
from compress.quantize.resources import SHARE_OF_MEMORY, Resources, place_for_windows
from compress.quantize.schemes import Fp8Recipe, Int8Recipe
from compress.quantize.walk import quantize_model

LEARNED = AwqRecipe(rounding=Learned(method="learned", steps=4, held_out=2))
FP8, INT8 = Fp8Recipe(method="fp8"), Int8Recipe(method="int8")
RECIPES = {
    "light": AwqRecipe(), "without feedback": AwqRecipe(feedback=None), "learned": LEARNED, "fp8": FP8, "int8": INT8
}  # fmt: skip
MANY = CONFIG | {"num_hidden_layers": 4}
WIDE = CONFIG | {"hidden_size": 512}  # heads of 128, so that blocks of 128 rows stay whole in a fused wqkv


def quantized(folder, out, recipe, layout="llama", **resources):
    out.mkdir(exist_ok=True)
    checkpoint = Checkpoint(folder)
    writer = ModelWriter(out, checkpoint.config.replace(torch_dtype="float16"), layout)
    given = {"resources": Resources(**resources), "journal": Journal(out.with_name(f"{out.name}.journal"))}
    match recipe:
        case Fp8Recipe():
            return quantize_to_fp8(checkpoint, writer, **given)
        case Int8Recipe():
            return quantize_to_int8(checkpoint, windows(8), recipe, writer, **given)
        case AwqRecipe():
            return quantize_model(checkpoint, windows(8), recipe, writer, **given)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class StopError(Exception):
    """Ends a walk at a chosen place."""


def stop_after(monkeypatch, layer):
    finish = Journal.finish

    def finish_and_stop(self, number, rows):
        finish(self, number, rows)
        if number == layer:
            raise StopError

    monkeypatch.setattr(Journal, "finish", finish_and_stop)


@pytest.mark.parametrize("layout", ["llama", "internlm2"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_walk_that_ended_after_a_layer_ends_in_the_same_bytes(tmp_path, monkeypatch, recipe, layout):
    write_internlm2(tmp_path / "m", WIDE if recipe == FP8 else CONFIG)
    errors = quantized(tmp_path / "m", tmp_path / "whole", recipe, layout)
    with monkeypatch.context() as patched:
        stop_after(patched, 0)
        with pytest.raises(StopError):
            quantized(tmp_path / "m", tmp_path / "parts", recipe, layout)
    assert not (tmp_path / "parts" / "config.json").exists()
    assert quantized(tmp_path / "m", tmp_path / "parts", recipe, layout) == errors
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


@pytest.mark.parametrize("recipe", [AwqRecipe(), FP8, INT8], ids=["4 bits", "fp8", "int8"])
def test_a_finished_layer_is_not_written_again(tmp_path, monkeypatch, recipe):
    write_internlm2(tmp_path / "m")
    with monkeypatch.context() as patched:
        stop_after(patched, 1)
        with pytest.raises(StopError):
            quantized(tmp_path / "m", tmp_path / "q", recipe)
    shards = [tmp_path / "q" / f"model-{n:05d}-of-00005.safetensors" for n in (2, 3)]
    before = [shard.stat().st_mtime_ns for shard in shards]
    quantized(tmp_path / "m", tmp_path / "q", recipe)
    assert [shard.stat().st_mtime_ns for shard in shards] == before


KILLED = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_resume import LEARNED, quantized
quantized(Path(sys.argv[1]), Path(sys.argv[2]), LEARNED)
"""


def test_killed_again_and_again_it_ends_in_the_same_bytes(tmp_path):
    """SIGKILL as soon as another layer is on disk, until a run comes through."""
    write_internlm2(tmp_path / "m", MANY)
    quantized(tmp_path / "m", tmp_path / "whole", LEARNED)
    out, root, kills = tmp_path / "killed", Path(__file__).parents[1], 0
    journal = tmp_path / "killed.journal"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "m"), str(out)]
    while True:
        done = len(list(journal.glob("layer-*.json")))
        run = subprocess.Popen(command, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"})
        while run.poll() is None and len(list(journal.glob("layer-*.json"))) == done:
            time.sleep(0.002)
        if run.poll() is not None:
            break
        run.send_signal(signal.SIGKILL)
        run.wait()
        kills += 1
    assert kills >= 2  # the last layers may be on disk together
    assert run.returncode == 0
    assert content(out) == content(tmp_path / "whole")


KILLS_ITSELF = """
import os, signal, sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_resume import RECIPES, Journal, quantized
finish = Journal.finish
def finish_and_die(self, *noted):
    finish(self, *noted)
    os.kill(os.getpid(), signal.SIGKILL)
Journal.finish = finish_and_die
quantized(Path(sys.argv[1]), Path(sys.argv[2]), RECIPES[sys.argv[3]])
"""


@pytest.mark.parametrize("name", ["fp8", "int8"])
def test_killed_behind_each_layer_8_bits_end_in_the_same_bytes(tmp_path, name):
    """SIGKILL by its own hand: a layer takes less time than seeing that it is there."""
    write_internlm2(tmp_path / "m", CONFIG | {"num_hidden_layers": 2})
    quantized(tmp_path / "m", tmp_path / "whole", RECIPES[name])
    command = [sys.executable, "-c", KILLS_ITSELF, str(tmp_path / "m"), str(tmp_path / "killed"), name]
    runs = [subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode for _ in range(3)]
    assert runs == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_damaged_shard_is_refused_with_its_place(tmp_path, monkeypatch):
    write_internlm2(tmp_path / "m")
    with monkeypatch.context() as patched:
        stop_after(patched, 0)
        with pytest.raises(StopError):
            quantized(tmp_path / "m", tmp_path / "q", AwqRecipe())
    shard = tmp_path / "q" / "model-00002-of-00005.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CompressError, match=r"model-00002-of-00005\.safetensors: damaged .* run again"):
        quantized(tmp_path / "m", tmp_path / "q", AwqRecipe())


@pytest.mark.parametrize("resources", [{"prefetch": False}, {"disk": True}], ids=["no prefetch", "windows on disk"])
@pytest.mark.parametrize("recipe", [AwqRecipe(), LEARNED, INT8], ids=["4 bits", "learned", "int8"])
def test_where_things_wait_does_not_change_a_byte(tmp_path, resources, recipe):
    write_internlm2(tmp_path / "m")
    if "disk" in resources:
        resources = {"disk": tmp_path}
    quantized(tmp_path / "m", tmp_path / "a", recipe)
    quantized(tmp_path / "m", tmp_path / "b", recipe, **resources)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert not list(tmp_path.glob(".activations*"))


@pytest.mark.parametrize(("recipe", "each"), [(AwqRecipe(damping=0.2), 0.03), (AwqRecipe(), 0.06)])
def test_another_batch_size_changes_no_more_than_the_order_of_sums_does(tmp_path, recipe, each):
    write_internlm2(tmp_path / "m")
    one, other = (quantized(tmp_path / "m", tmp_path / str(n), recipe, batch=n) for n in (8, 3))
    assert all(a.error == pytest.approx(b.error, rel=each) for a, b in zip(one, other, strict=True))
    assert sum(a.error for a in one) == pytest.approx(sum(b.error for b in other), rel=0.01)


def test_windows_that_memory_cannot_hold_wait_on_disk(tmp_path):
    def place(windows, hidden, device="cpu"):
        return place_for_windows(windows, hidden, AwqRecipe(), Resources(device), tmp_path)

    assert place((8, 32), 256) is None
    assert place((2**20, 2**20), 8192) == tmp_path
    numbers = int(SHARE_OF_MEMORY * free_memory()) // 4  # so many fit in 4 bytes; of both models are half as many
    between = 1 << (numbers.bit_length() - 1)  # at most so many, and twice as many are more
    assert place((1, between), 1) == tmp_path
    assert place((1, between), 1, "cuda:0") is None  # in 2 bytes each


STAT = "anon 5\nactive_file 300\ninactive_file 700\n"


def write_group(folder, limit, names=("memory.max", "memory.current"), stat=STAT):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip((*names, "memory.stat"), (limit, "4000", stat), strict=True):
        (folder / name).write_text(value)


def test_memory_is_what_the_narrowest_control_group_around_us_leaves(tmp_path):
    of, inner = tmp_path / "cgroup", tmp_path / "groups" / "slice" / "box"
    of.write_text("4:memory:/elsewhere\n0::/slice/box\n")
    write_group(inner, "max")
    write_group(inner.parent, "10000")
    machine = free_memory(tmp_path / "none", of)
    assert machine == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert memory_limit(tmp_path / "none", of) is None
    assert free_memory(tmp_path / "groups", of) == 10_000 - 4_000 + 1_000
    assert memory_limit(tmp_path / "groups", of) == 10_000
    (inner / "memory.max").write_text("2000")
    assert free_memory(tmp_path / "groups", of) == 2_000 - 4_000 + 1_000
    assert memory_limit(tmp_path / "groups", of) == 2_000


def test_a_limit_of_the_first_version_of_control_groups_counts_too(tmp_path):
    of, names = tmp_path / "cgroup", ("memory.limit_in_bytes", "memory.usage_in_bytes")
    of.write_text("9:name=systemd:/\n4:memory:/box\n0::/\n")
    group = tmp_path / "groups" / "memory" / "box"
    write_group(group.parent, "9223372036854771712", names)
    write_group(
        group, "10000", names, "active_file 1\ninactive_file 2\ntotal_active_file 300\ntotal_inactive_file 700\n"
    )
    assert memory_limit(tmp_path / "groups", of) == 10_000
    assert free_memory(tmp_path / "groups", of) == 10_000 - 4_000 + 1_000


def test_the_stored_layer_is_the_layer_that_the_windows_went_through(tmp_path, monkeypatch):
    """Without this, what resumes would not be what went on."""
    from compress.quantize.walk import _Walk

    write_internlm2(tmp_path / "m")
    went, tensors = [], _Walk._tensors

    def remember(self, layer, linears, n):
        went.append({name: p.detach().clone() for name, p in layer.named_parameters()})
        return tensors(self, layer, linears, n)

    monkeypatch.setattr(_Walk, "_tensors", remember)
    quantized(tmp_path / "m", tmp_path / "q", AwqRecipe())
    from compress.checkpoint.runner import LayerRunner

    runner = LayerRunner(Checkpoint(tmp_path / "q"), "cpu", 8)
    for n, parameters in enumerate(went):
        stored = dict(runner.load(n).named_parameters())
        assert all(torch.equal(stored[name], parameter) for name, parameter in parameters.items())
