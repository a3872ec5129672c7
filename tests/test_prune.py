"""The layers that matter least go, and what is left is the model without them."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIG, internlm2_tensors, windows, write_config, write_internlm2

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.prune.depth import least_influential, write_without
from compress.prune.influence import block_influence
from compress.quantize.resources import Resources

FOUR = CONFIG | {"num_hidden_layers": 4}


def logits(folder, ids):
    with torch.no_grad():
        return load_model(folder)(ids).logits


def pruned(folder, out, removed, layout="llama"):
    checkpoint = Checkpoint(folder)
    out.mkdir()
    config = checkpoint.config.replace(num_hidden_layers=checkpoint.config.num_layers - len(removed))
    write_without(checkpoint, removed, ModelWriter(out, config, layout))
    return out


def write_with_idle_layer(folder, idle):
    """A model whose layer `idle` adds nothing to its input."""
    tensors = internlm2_tensors(FOUR)
    for last in ("attention.wo", "feed_forward.w2"):
        tensors[f"model.layers.{idle}.{last}.weight"].zero_()
    write_config(folder, FOUR)
    save_file(tensors, folder / "model.safetensors")


# --- which layers


@pytest.mark.parametrize("idle", [0, 2, 3])
def test_a_layer_that_passes_its_input_on_has_no_influence_and_goes_first(tmp_path, idle):
    write_with_idle_layer(tmp_path / "m", idle)
    scores = block_influence(Checkpoint(tmp_path / "m"), windows())
    assert scores[idle] == pytest.approx(0, abs=1e-6)
    assert all(score > 0.01 for n, score in enumerate(scores) if n != idle)
    assert least_influential(scores, 1, "here") == [idle]


def test_influence_is_one_minus_the_mean_cosine_of_hidden_states(tmp_path):
    write_internlm2(tmp_path / "m", FOUR)
    seen = []
    model = load_model(tmp_path / "m")
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    with torch.no_grad():
        model(windows())
    # Written out: torch's own cosine is what is checked.
    expected = [1 - ((a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).mean().item() for a, b in seen]
    assert len(expected) == 4
    assert block_influence(Checkpoint(tmp_path / "m"), windows()) == pytest.approx(expected, abs=1e-5)


def test_only_tokens_that_count_have_influence(tmp_path):
    """A window of which only the beginning counts scores as that beginning alone: no token sees those after it."""
    write_internlm2(tmp_path / "m")
    counted = torch.zeros(4, 32, dtype=torch.bool)
    counted[:, :12] = True
    masked = block_influence(Checkpoint(tmp_path / "m"), windows(), counted=counted)
    assert masked == pytest.approx(block_influence(Checkpoint(tmp_path / "m"), windows()[:, :12]), abs=1e-5)
    assert masked != pytest.approx(block_influence(Checkpoint(tmp_path / "m"), windows()), abs=1e-4)


def test_influence_is_the_same_in_one_batch_or_many(tmp_path):
    write_internlm2(tmp_path / "m")
    one, many = (
        block_influence(Checkpoint(tmp_path / "m"), windows(7), block=2, resources=Resources(batch=batch))
        for batch in (7, 2)
    )
    assert one == pytest.approx(many, abs=1e-6)


def test_influence_is_the_same_wherever_windows_wait(tmp_path):
    write_internlm2(tmp_path / "m", FOUR)
    memory, disk = (
        block_influence(Checkpoint(tmp_path / "m"), windows(7), block=3, resources=Resources(disk=folder))
        for folder in (None, tmp_path)
    )
    assert memory == disk
    assert len(memory) == 2


def test_activations_that_are_no_numbers_are_refused(tmp_path):
    tensors = internlm2_tensors()
    tensors["model.layers.1.feed_forward.w2.weight"].fill_(3e38)
    write_config(tmp_path / "m", CONFIG)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(
        CompressError, match=r"^layers\.1: activations leave the range of torch.float32; set TURBOPRESS_DEV"
    ):
        block_influence(Checkpoint(tmp_path / "m"), windows())


def test_the_least_influential_are_named_in_the_model_s_order():
    assert least_influential([0.5, 0.1, 0.4, 0.2], 2, "here") == [1, 3]
    assert least_influential([0.5, 0.3, 0.1], 2, "here") == [1, 2]


def test_of_equal_layers_the_first_goes():
    assert least_influential([0.3, 0.2, 0.2, 0.2], 2, "here") == [1, 2]


@pytest.mark.parametrize("count", [3, 4])
def test_leaving_no_layer_is_refused_with_the_place(count):
    with pytest.raises(
        CompressError, match=rf"^prune\.shallow\.remove_layers: {count} of 3 layers; leave at least one"
    ):
        least_influential([0.1, 0.2, 0.3], count, "prune.shallow")


# --- what is left


def test_a_test_that_prunes_what_the_engine_does_not_take_fails(tmp_path):
    write_internlm2(tmp_path / "m", FOUR | {"num_attention_heads": 8})
    with pytest.raises(AssertionError, match=r"tp 1, layout llama: head_dim is 32, kernels exist for"):
        pruned(tmp_path / "m", tmp_path / "p", [1])


@pytest.mark.parametrize("removed", [[0], [3], [1, 2], [0, 2, 3]], ids=str)
def test_pruned_logits_equal_a_model_built_without_those_layers(tmp_path, removed):
    tensors = write_internlm2(tmp_path / "m", FOUR)
    kept = [n for n in range(4) if n not in removed]
    by_hand = {name: t for name, t in tensors.items() if ".layers." not in name}
    for new, old in enumerate(kept):
        at = f"model.layers.{old}."
        by_hand |= {name.replace(at, f"model.layers.{new}."): t for name, t in tensors.items() if name.startswith(at)}
    write_config(tmp_path / "hand", FOUR | {"num_hidden_layers": len(kept)})
    save_file({name: t.clone() for name, t in by_hand.items()}, tmp_path / "hand" / "model.safetensors")
    ids = windows(2)
    ours = logits(pruned(tmp_path / "m", tmp_path / "p", removed), ids)
    assert torch.equal(ours, logits(tmp_path / "hand", ids))
    assert not torch.allclose(ours, logits(tmp_path / "m", ids), atol=1e-2)


def test_an_idle_layer_can_go_and_nothing_changes(tmp_path):
    write_with_idle_layer(tmp_path / "m", 1)
    ids = windows(2)
    assert torch.equal(logits(pruned(tmp_path / "m", tmp_path / "p", [1]), ids), logits(tmp_path / "m", ids))


@pytest.mark.parametrize("layout", ["llama", "internlm2"])
def test_the_layers_that_stay_move_up_and_keep_their_order(tmp_path, layout):
    tensors = write_internlm2(tmp_path / "m", FOUR)
    folder = pruned(tmp_path / "m", tmp_path / "p", [0, 2], layout)
    checkpoint = Checkpoint(folder)
    assert checkpoint.config.num_layers == 2
    assert sorted({name.split(".")[2] for name in checkpoint.names if ".layers." in name}) == ["0", "1"]
    for new, old in enumerate([1, 3]):
        down = checkpoint.tensor(f"model.layers.{new}.mlp.down_proj.weight")
        assert torch.equal(down, tensors[f"model.layers.{old}.feed_forward.w2.weight"])


def test_a_pruned_folder_holds_no_tensor_of_a_removed_layer(tmp_path):
    tensors = write_internlm2(tmp_path / "m", FOUR)
    folder = pruned(tmp_path / "m", tmp_path / "p", [2], "internlm2")
    stored = [t for shard in folder.glob("*.safetensors") for t in load_file(shard).values()]
    gone = tensors["model.layers.2.feed_forward.w1.weight"]
    assert len(stored) == len(tensors) - sum(".layers.2." in name for name in tensors)
    assert not any(t.shape == gone.shape and torch.equal(t, gone) for t in stored)
