"""Training brings a student closer to its teacher, the same way each time, and never holds all logits at once."""

import math
import re

import pytest
import torch
from accelerate.state import AcceleratorState
from test_distill_losses import Memory
from tiny import CONFIG, windows, write_internlm2

from compress.checkpoint.load import load_model
from compress.distill import fused
from compress.distill.batches import Corpus
from compress.distill.recipe import DistillRecipe
from compress.distill.train import distill_
from compress.errors import CompressError

ONE_HEAD = {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 128, "vocab_size": 256}
TEACHER = CONFIG | ONE_HEAD | {"num_hidden_layers": 2, "hidden_size": 128}
STUDENT = CONFIG | ONE_HEAD | {"num_hidden_layers": 1, "hidden_size": 64}
RECIPE = DistillRecipe(steps=8, batch=4, learning_rate=0.004, warmup_steps=2)


def texts(count, seed=0):
    return windows(count, 16, TEACHER["vocab_size"], seed)


@pytest.fixture
def models(tmp_path):
    """Makes a student and its teacher, the same ones at each call; the student is smaller in every way."""
    write_internlm2(tmp_path / "teacher", TEACHER)
    write_internlm2(tmp_path / "student", STUDENT, seed=1)

    def load():
        return load_model(tmp_path / "student"), load_model(tmp_path / "teacher")

    return load


def held_out_kl(student, teacher):
    with torch.no_grad():
        ours, theirs = (model(texts(8, seed=9)).logits.log_softmax(-1) for model in (student, teacher))
    return (theirs.exp() * (theirs - ours)).sum(-1).mean().item()


def test_training_lowers_the_loss_and_brings_the_student_closer_on_held_out_windows(models):
    student, teacher = models()
    before, guide = held_out_kl(student, teacher), {k: v.clone() for k, v in teacher.state_dict().items()}
    steps = distill_(student, teacher, texts(48), RECIPE.model_copy(update={"steps": 30}))
    assert [step.step for step in steps] == list(range(30))
    assert steps[0].loss_nats == pytest.approx(before, rel=0.2)
    assert steps[-1].loss_nats < 0.8 * steps[0].loss_nats
    assert held_out_kl(student, teacher) < 0.8 * before
    assert all(torch.equal(guide[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not student.training


def test_one_seed_gives_the_same_weights_bit_for_bit_and_another_gives_others(models):
    trained = []
    for seed in (3, 3, 4):
        student, teacher = models()
        losses = distill_(student, teacher, texts(16), RECIPE.model_copy(update={"steps": 3, "seed": seed}))
        trained.append((student.state_dict(), losses))
    (first, losses), (again, losses_again), (other, _) = trained
    assert losses == losses_again
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_each_precision_trains_in_one_process(models, precision):
    student, teacher = models()
    steps = distill_(student, teacher, texts(16), RECIPE.model_copy(update={"precision": precision}))
    assert steps[-1].loss_nats < steps[0].loss_nats
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())


def test_only_positions_that_count_are_learnt(models):
    """What the windows hold after the last position that counts changes no weight; what they hold before it does."""
    counted = torch.zeros(16, 16, dtype=torch.bool)
    counted[:, 4:9] = True
    trained = []
    for changed in (None, 12, 2):
        tokens, (student, teacher) = texts(16).clone(), models()
        if changed is not None:
            tokens[:, changed] = (tokens[:, changed] + 1) % TEACHER["vocab_size"]
        steps = distill_(student, teacher, tokens, RECIPE, counted=counted)
        trained.append((steps[-1].loss_nats, student.model.layers[0].mlp.up_proj.weight.detach()))
    (loss, W), (loss_after, W_after), (loss_before, W_before) = trained
    assert loss_after == pytest.approx(loss, abs=1e-5)
    assert torch.allclose(W, W_after, atol=1e-5)
    assert abs(loss_before - loss) > 1e-4
    assert not torch.allclose(W, W_before, atol=1e-5)


@pytest.fixture
def elsewhere(monkeypatch):
    """accelerate, which keeps its choice for the whole process, would train on a device that computes nothing."""
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_one_process_trains_where_the_student_lies(elsewhere, models):
    student, teacher = models()
    steps = distill_(student, teacher, texts(16), RECIPE)
    assert steps[-1].loss_nats < steps[0].loss_nats
    assert AcceleratorState().device.type == "meta"  # so accelerate would have
    assert {parameter.device.type for model in (student, teacher) for parameter in model.parameters()} == {"cpu"}


def test_a_loss_that_is_no_number_stops_with_its_step_and_its_windows_by_number_and_digest(models):
    student, teacher = models()
    student.model.norm.weight.data[3] = float("nan")
    seen = []
    student.model.embed_tokens.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with pytest.raises(CompressError) as error:
        distill_(student, teacher, texts(16), RECIPE)
    said = r"^step 0: the loss is nan on the batch (\w{12}) \(windows (\d+(?:, \d+){3})\); lower learning_rate or raise"
    digest, named = re.match(said, str(error.value)).groups()
    numbers = [int(number) for number in named.split(", ")]
    assert digest == Corpus(texts(16)).digest(numbers)[:12]
    assert torch.equal(texts(16)[numbers], seen[0])


def test_training_that_runs_away_stops_with_its_step(models):
    student, teacher = models()
    with pytest.raises(CompressError, match=r"^step [1-9]\d*: the loss is (nan|inf)"):
        distill_(student, teacher, texts(16), RECIPE.model_copy(update={"learning_rate": 1e30}))


def test_vocabularies_that_differ_are_refused(tmp_path, models):
    _, teacher = models()
    write_internlm2(tmp_path / "other", STUDENT | {"vocab_size": 200})
    with pytest.raises(CompressError, match=r"^student: vocabulary of 200, the teacher's has 256"):
        distill_(load_model(tmp_path / "other"), teacher, texts(16), RECIPE)


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (10, 4), (3, 4)])
def test_all_windows_are_seen_once_before_any_is_seen_twice(models, count, batch):
    student, teacher = models()
    numbered = torch.arange(count)[:, None].expand(count, 16).contiguous()  # a window is known by its token
    seen = []
    student.model.embed_tokens.register_forward_hook(lambda _, inputs, __: seen.extend(inputs[0][:, 0].tolist()))
    distill_(student, teacher, numbered, RECIPE.model_copy(update={"steps": 6, "batch": batch}))
    assert len(seen) == 6 * batch
    rounds = [seen[start : start + count] for start in range(0, len(seen) - count + 1, count)]
    assert len(rounds) >= 2
    assert all(sorted(one) == list(range(count)) for one in rounds)


LOSSES = {"one": {"kind": "forward_kl"}, "mix": [{"kind": "reverse_kl"}, {"kind": "cross_entropy"}]}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_no_tensor_of_a_training_has_logits_of_more_than_a_chunk_of_tokens(tmp_path, monkeypatch, precision, loss):
    """Nor has one in a look at what is held out. Whatever else is large is a head, its gradient or its moments."""
    vocab, chunk = 4_001, 8
    write_internlm2(tmp_path / "model", STUDENT | {"vocab_size": vocab})
    monkeypatch.setattr(fused, "CHUNK_BYTES", {"cpu": 4 * vocab * chunk})
    student, teacher = (load_model(tmp_path / "model") for _ in range(2))
    said = {"steps": 2, "batch": 8, "learning_rate": 0.001, "warmup_steps": 0, "loss": loss, "precision": precision}
    recipe = DistillRecipe.model_validate(said | {"evaluate": {"every": 1, "windows": 8}})
    with Memory() as memory:
        distill_(student, teacher, texts(24), recipe)
    large = {shape for shape in memory.shapes if math.prod(shape) > chunk * vocab}
    assert large <= {(vocab, STUDENT["hidden_size"]), (STUDENT["hidden_size"], vocab)}
    assert (chunk, vocab) in memory.shapes  # so the measure sees what it should
    assert math.prod(max(large, key=math.prod)) < 8 * 16 * vocab
