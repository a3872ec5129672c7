"""A model as one GGUF file: the codes and scales are ours, and what cannot go over is refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from formats import write_in_scheme
from tiny import CONFIG, write_internlm2
from tiny_repository import make_repository

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import ModelConfig
from compress.checkpoint.load import unpacked
from compress.checkpoint.tokenizer import write_tokenizer
from compress.errors import CompressError
from compress.gguf.blocks import pack_q4_0, pack_q4_1, rounding, unpack_q4_0, unpack_q4_1
from compress.gguf.byte_level import pre_name
from compress.gguf.facts import require_family
from compress.gguf.read import read_weights
from compress.gguf.vocabulary import scores
from compress.gguf.write import export
from compress.quantize.formats import compressed_tensors
from compress.quantize.grid import Grid, dequantize

gguf = pytest.importorskip("gguf", reason="the extra [gguf] is not installed")

DEMO = Path(__file__).parents[1] / "examples" / "demo" / "base"
SMALL = CONFIG | {"vocab_size": 6144, "num_hidden_layers": 2}
WORST_STEPS = 0.0074  # half a unit in the last place of a float16 in [16, 32) steps, over the least such step


def random_linear(group_size=32, zeros=None):
    torch.manual_seed(0)
    s = (2 ** torch.empty(24, 128 // group_size).uniform_(-12, 3)).half().float()
    z = torch.randint(0, 16, s.shape).float() if zeros is None else torch.full_like(s, zeros)
    return torch.randint(0, 16, (24, 128), dtype=torch.uint8), Grid(s, z, 4, group_size)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A float model in InternLM2's layout with the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("source") / "model"
    write_internlm2(folder, SMALL)
    write_tokenizer(DEMO, folder)
    return folder


def written(source, folder, scheme, layout="llama", **kept):
    """The source in a scheme, with its tokenizer."""
    expected = write_in_scheme(source, folder, scheme, layout, **kept)
    copy_tokenizer(source, folder)
    return expected


def copy_tokenizer(source, folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(source / name, folder)


# --- blocks


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_codes_and_scales_come_back_bit_for_bit(group_size):
    q, grid = random_linear(group_size)
    codes, step, least = unpack_q4_1(pack_q4_1(q, grid))
    spread = grid.scales.repeat_interleave(group_size // 32, 1)
    assert torch.equal(codes, q)
    assert torch.equal(step.float(), spread)
    assert torch.equal(least, -(spread * grid.zeros.repeat_interleave(group_size // 32, 1)).half())


def test_the_library_unpacks_the_blocks_to_the_same_weights():
    q, grid = random_linear()
    theirs = gguf.quants.dequantize(pack_q4_1(q, grid).numpy(), gguf.GGMLQuantizationType.Q4_1)
    off = (torch.tensor(theirs) - dequantize(q, grid)).abs() / grid.scales.repeat_interleave(32, 1)
    assert off.max() <= WORST_STEPS
    q, grid = random_linear(zeros=8)
    theirs = gguf.quants.dequantize(pack_q4_0(q, grid).numpy(), gguf.GGMLQuantizationType.Q4_0)
    assert torch.equal(torch.tensor(theirs), dequantize(q, grid))
    codes, step = unpack_q4_0(pack_q4_0(q, grid))
    assert torch.equal(codes, q)
    assert torch.equal(step.float(), grid.scales)


def test_only_zeros_that_are_no_power_of_two_are_moved_and_by_little():
    assert all(rounding(random_linear(zeros=z)[1]).moved == 0 for z in (0, 1, 2, 4, 8))
    moved = rounding(random_linear(zeros=15)[1])
    assert 0 < moved.moved < moved.groups
    assert 0 < moved.worst_steps <= WORST_STEPS


# --- files


@pytest.mark.parametrize(("scheme", "bits"), [("awq-128", 5.0), ("ct-32", 5.0)])
def test_a_file_holds_the_folder_s_weights_in_either_layout(source, tmp_path, scheme, bits):
    expected = written(source, tmp_path / "a", scheme, "llama")
    written(source, tmp_path / "b", scheme, "internlm2")
    told = [export(tmp_path / name, tmp_path / f"{name}.gguf", "model") for name in "ab"]
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert told[0].bits_per_linear_weight == bits
    checkpoint = Checkpoint(tmp_path / "b")
    held = read_weights(tmp_path / "b.gguf", checkpoint)
    assert held.keys() == expected.keys()
    for name, weight in expected.items():
        scale = weight.abs().amax() if "proj" in name else 0.0  # of Q4_1 a step at most, of the others nothing
        assert (held[name] - weight).abs().max() <= WORST_STEPS * scale, name


def test_the_file_differs_by_no_more_than_the_moved_zeros(source, tmp_path):
    written(source, tmp_path / "a", "awq-128", kept=["0.self_attn.o_proj"])
    told = export(tmp_path / "a", tmp_path / "a.gguf", "model")
    checkpoint = Checkpoint(tmp_path / "a")
    held = read_weights(tmp_path / "a.gguf", checkpoint)
    name = "model.layers.1.mlp.down_proj"
    parts = checkpoint.tensors([f"{name}.{part}" for part in ("qweight", "qzeros", "scales")])
    ours = unpacked(parts)[f"{name}.weight"]
    steps = (held[f"{name}.weight"] - ours).abs() / parts[f"{name}.scales"].float().t().repeat_interleave(128, 1)
    assert 0 < steps.max() <= told.rounded.worst_steps * 1.001
    assert torch.equal(held["lm_head.weight"], checkpoint.tensor("lm_head.weight").float())


def test_a_symmetric_model_is_held_without_any_rounding(source, tmp_path):
    folder = tmp_path / "a"
    written(source, folder, "ct-32")
    make_symmetric(folder)
    told = export(folder, tmp_path / "a.gguf", "model")
    assert told.bits_per_linear_weight == 4.5
    checkpoint = Checkpoint(folder)
    ours = unpacked(checkpoint.tensors(checkpoint.layer_names(0)))
    held = read_weights(tmp_path / "a.gguf", checkpoint)
    assert all(torch.equal(held[name], weight.float()) for name, weight in ours.items())


def make_symmetric(folder):
    """Takes the zeros out, as other tools leave them out."""
    from safetensors.torch import load_file, save_file

    for file in folder.glob("*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(file).items() if "zero_point" not in name}
        save_file(kept, file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"] = {name: file for name, file in said["weight_map"].items() if "zero_point" not in name}
    index.write_text(json.dumps(said))
    assert compressed_tensors.SYMMETRIC_ZERO == 8


def test_a_float_model_keeps_every_bit_of_its_own_type(source, tmp_path):
    told = export(source, tmp_path / "a.gguf", "model")
    checkpoint = Checkpoint(source)
    held = read_weights(tmp_path / "a.gguf", checkpoint)
    assert told.types.keys() == {"F32"}
    assert held.keys() == checkpoint.names
    assert all(torch.equal(held[name], checkpoint.tensor(name)) for name in checkpoint.names)


# --- what is refused


@pytest.mark.parametrize(("scheme", "method"), [("fp8", "fp8"), ("int8", "smooth_quant")])
def test_eight_bit_variants_are_refused_with_what_to_give_instead(source, tmp_path, scheme, method):
    written(source, tmp_path / "a", scheme)
    with pytest.raises(
        CompressError, match=rf"is {method}, which GGUF has no block for; give a 4-bit variant .* 16-bit"
    ):
        export(tmp_path / "a", tmp_path / "a.gguf", "model")


def configured(source, folder, **fields):
    """The source with other fields in its config.json."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(SMALL | fields))
    return folder


def test_rope_that_stretches_late_is_told_and_one_that_llama_cpp_lacks_refused(source, tmp_path):
    dynamic = configured(source, tmp_path / "dynamic", rope_scaling={"type": "dynamic", "factor": 2.0})
    assert "the same up to 64 tokens" in export(dynamic, tmp_path / "a.gguf", "model").note
    linear = configured(source, tmp_path / "linear", rope_scaling={"type": "linear", "factor": 2.0})
    assert export(linear, tmp_path / "a.gguf", "model").context == 128
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
    with pytest.raises(CompressError, match="rope_scaling yarn is not written to GGUF"):
        export(configured(source, tmp_path / "yarn", rope_scaling=yarn), tmp_path / "b.gguf", "model")


@pytest.mark.parametrize(
    ("merges", "vocabulary", "reason"),
    [
        (["a b", "c d", "ab c", "a bc"], "a b c d ab cd abc", None),  # each way to split a piece, side by side
        (["a b", "b c", "ab c", "b cd", "a bc"], "a b c d ab bc cd abc bcd", "lie between those of another piece"),
        (["a b"], "a b c ab abc", "'abc' would be joined from 'ab' and 'c'"),
    ],
)
def test_merges_that_no_score_says_are_refused(merges, vocabulary, reason):
    model = {"vocab": {piece: n for n, piece in enumerate(vocabulary.split())}, "merges": merges}
    if reason is None:
        assert scores(model, set()) == {"ab": 0.0, "cd": -1.0, "abc": -2.0}
        return
    with pytest.raises(CompressError, match=reason):
        scores(model, set())


def test_a_family_and_a_cutting_of_texts_that_llama_cpp_would_do_otherwise_are_refused(source, tmp_path):
    qwen = ModelConfig("qwen2", Checkpoint(source).config.fields)
    with pytest.raises(
        CompressError, match=r"config\.json: qwen2 is not written to GGUF here, only llama; serve it by"
    ):
        require_family(qwen, "config.json")
    digits = {"type": "Digits", "individual_digits": False}
    cut = {"type": "Sequence", "pretokenizers": [digits, {"type": "ByteLevel", "add_prefix_space": False}]}
    with pytest.raises(CompressError, match=r"pre_tokenizer \(Digits, ByteLevel\) is none of gpt-2, smollm, llama-bpe"):
        pre_name({"pre_tokenizer": cut, "normalizer": None, "model": {}})
    with pytest.raises(CompressError, match=r"ignore_merges is True, unlike llama\.cpp's gpt-2"):
        pre_name({"pre_tokenizer": cut["pretokenizers"][1], "normalizer": None, "model": {"ignore_merges": True}})


# --- the command


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


def test_the_command_writes_the_same_whole_file_twice(source, tmp_path, turbopress):
    written(source, tmp_path / "a", "awq-128")
    for name in ("one.gguf", "two.gguf"):
        status, out, _ = turbopress("gguf", tmp_path / "a", "--to", tmp_path / name)
        assert status == 0
        assert "5.00 bits a weight in the linears" in out
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "one.gguf", "two.gguf"]


def test_what_is_refused_leaves_no_file(repository, tmp_path, turbopress, monkeypatch):
    monkeypatch.chdir(repository)
    status, out, error = turbopress("gguf", "awq-w4", "--to", tmp_path / "a.gguf")
    assert (status, out) == (1, "")
    assert error == (
        f"turbopress: {repository}/models/awq-w4/tokenizer.json: a WordLevel model without byte pieces; "
        "only BPE goes to GGUF; serve it by LMDeploy or transformers\n"
    )
    assert list(tmp_path.iterdir()) == []
    status, _, error = turbopress("gguf", "awq-w4", "--to", tmp_path / "a.bin")
    assert (status, error) == (1, f"turbopress: --to: {tmp_path}/a.bin; choose a name that ends in .gguf\n")


def test_without_the_library_it_says_how_to_get_it(source, tmp_path, turbopress, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    status, _, error = turbopress("gguf", source, "--to", tmp_path / "a.gguf")
    assert (status, error) == (1, "turbopress: gguf: not installed; pip install 'turbopress[gguf]'\n")
