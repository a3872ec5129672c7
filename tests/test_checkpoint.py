"""Any supported folder, read under canonical names, is the same function that it was."""

import json

import internlm2_reference
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIG, internlm2_tensors, windows, write_config, write_internlm2
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError


def logits(folder, ids):
    with torch.no_grad():
        return load_model(folder)(ids[None]).logits[0]


def rewrite(folder, out, layout):
    checkpoint = Checkpoint(folder)
    out.mkdir()
    writer = ModelWriter(out, checkpoint.config, layout)
    for n in range(checkpoint.config.num_layers):
        writer.layer(n, checkpoint.tensors(checkpoint.layer_names(n)))
    writer.outer(checkpoint.tensors(checkpoint.outer_names()))
    writer.close(checkpoint.quantization)
    return out


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 48),
        ({"bias": True}, 48),
        ({"num_key_value_heads": 1}, 48),
        ({"num_key_value_heads": 4}, 48),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 48),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 160),
    ],
    ids=["plain", "biases", "one-kv-head", "no-grouping", "ntk-short", "ntk-beyond-trained-length"],
)
def test_logits_equal_an_independent_internlm2_forward(tmp_path, changes, length):
    config = CONFIG | changes
    tensors = write_internlm2(tmp_path / "model", config)
    ids = windows(1, length)[0]
    expected = internlm2_reference.logits(tensors, config, ids)
    assert torch.allclose(logits(tmp_path / "model", ids), expected, atol=2e-4, rtol=2e-4)


def test_internlm2_to_stock_and_back_is_the_identity(tmp_path):
    tensors = write_internlm2(tmp_path / "model", CONFIG | {"rope_scaling": {"type": "dynamic", "factor": 3.0}})
    stock = rewrite(tmp_path / "model", tmp_path / "stock", "llama")
    back = rewrite(stock, tmp_path / "back", "internlm2")
    returned = {k: v for shard in back.glob("*.safetensors") for k, v in load_file(shard).items()}
    assert returned.keys() == tensors.keys()
    assert all(torch.equal(returned[name], tensors[name]) for name in tensors)
    config = json.loads((back / "config.json").read_text())
    assert config["rope_scaling"] == {"type": "dynamic", "factor": 3.0}
    assert config["rope_theta"] == 1000000.0
    assert "auto_map" not in config


def test_the_stock_folder_opens_in_transformers_without_us(tmp_path):
    write_internlm2(tmp_path / "model")
    stock = rewrite(tmp_path / "model", tmp_path / "stock", "llama")
    ids = windows(1)[0]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(stock, dtype=torch.float32)(ids[None]).logits[0]
    assert torch.equal(theirs, logits(stock, ids))


@pytest.mark.parametrize(
    ("config_class", "model_class"), [(Qwen2Config, Qwen2ForCausalLM), (Qwen3Config, Qwen3ForCausalLM)]
)
@pytest.mark.parametrize("tied", [False, True])
def test_qwen_models_keep_their_logits(tmp_path, config_class, model_class, tied):
    torch.manual_seed(0)
    config = config_class(
        hidden_size=256, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, vocab_size=512, max_position_embeddings=128, tie_word_embeddings=tied,
    )  # fmt: skip
    model = model_class(config).eval()
    model.save_pretrained(tmp_path / "model")
    ids = windows(1)[0]
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    stock = rewrite(tmp_path / "model", tmp_path / "stock", "llama")
    assert torch.allclose(logits(stock, ids), expected, atol=1e-5)


def test_bin_shards_are_read_like_safetensors(tmp_path):
    tensors = internlm2_tensors()
    write_internlm2(tmp_path / "one")
    write_config(tmp_path / "bin", CONFIG)
    names = sorted(tensors)
    shards = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, held in shards.items():
        torch.save({name: tensors[name] for name in held}, tmp_path / "bin" / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (tmp_path / "bin" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    ids = windows(1)[0]
    assert torch.equal(logits(tmp_path / "bin", ids), logits(tmp_path / "one", ids))


def test_a_bin_file_with_code_in_it_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    write_config(tmp_path / "model", CONFIG)
    torch.save({"model.norm.weight": Trap()}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(CompressError, match="damaged"):
        Checkpoint(tmp_path / "model")
    assert not (tmp_path / "sprung").exists()


def test_a_truncated_shard_is_refused_with_its_name(tmp_path):
    write_internlm2(tmp_path / "model")
    shard = tmp_path / "model" / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(CompressError, match=r"model\.safetensors: damaged or truncated"):
        Checkpoint(tmp_path / "model")


def test_nan_weights_are_refused_with_tensor_and_count(tmp_path):
    tensors = write_internlm2(tmp_path / "model")
    tensors["model.layers.1.feed_forward.w2.weight"][3, 5] = float("nan")
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    checkpoint = Checkpoint(tmp_path / "model")
    with pytest.raises(CompressError, match=r"layers\.1\.mlp\.down_proj\.weight holds 1 values"):
        checkpoint.tensors(checkpoint.layer_names(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BertModel"]}, "BertModel is not supported; choose a base of InternLM2ForCausalLM"),
        ({"rope_theta": None}, "rope_theta missing"),
        ({"num_key_value_heads": None}, "num_key_value_heads missing"),
        ({"num_hidden_layers": 4}, r"9 missing \(first: model\.layers\.3"),
        ({"num_hidden_layers": 2}, r"9 unknown \(first: model\.layers\.2"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, change, message):
    write_internlm2(tmp_path / "model")
    write_config(tmp_path / "model", CONFIG | change)
    with pytest.raises(CompressError, match=message):
        Checkpoint(tmp_path / "model")


def test_an_index_that_leaves_the_folder_is_refused(tmp_path):
    write_internlm2(tmp_path / "model")
    index = {"weight_map": dict.fromkeys(internlm2_tensors(), "../outside.safetensors")}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CompressError, match="outside the folder"):
        Checkpoint(tmp_path / "model")


def test_rope_in_the_spelling_of_transformers_5_is_understood(tmp_path):
    write_internlm2(tmp_path / "model")
    newer = {k: v for k, v in CONFIG.items() if not k.startswith("rope")}
    newer["rope_parameters"] = {"rope_theta": 500000.0, "rope_type": "dynamic", "factor": 2.0}
    write_config(tmp_path / "model", newer)
    fields = Checkpoint(tmp_path / "model").config.fields
    assert fields["rope_theta"] == 500000.0
    assert fields["rope_scaling"] == {"rope_type": "dynamic", "factor": 2.0}
