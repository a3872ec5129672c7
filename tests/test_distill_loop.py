"""The training loop: any division of an update into passes and processes trains the same, and so does one that was
killed and went on; what is held out is never trained on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from full_disk import full_disk
from tiny import CONFIG, windows, write_internlm2

from compress.checkpoint.load import load_model
from compress.distill.recipe import DistillRecipe
from compress.distill.train import distill_
from compress.errors import CompressError

SMALL = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 96, "vocab_size": 211}
TEACHER = CONFIG | SMALL | {"num_hidden_layers": 3, "hidden_size": 64}
STUDENT = CONFIG | SMALL | {"num_hidden_layers": 2, "hidden_size": 32}
SAID = {"steps": 6, "batch": 4, "learning_rate": 0.004, "warmup_steps": 2}
HERE = Path(__file__).parent


def recipe(**said):
    return DistillRecipe.model_validate(SAID | said)


@pytest.fixture
def models(tmp_path):
    """Makes a student and its teacher, the same ones at each call."""
    write_internlm2(tmp_path / "teacher", TEACHER)
    write_internlm2(tmp_path / "student", STUDENT, seed=1)
    return lambda: (load_model(tmp_path / "student"), load_model(tmp_path / "teacher"))


def texts(count=24):
    return windows(count, 12, TEACHER["vocab_size"])


def uneven(count=24):
    """Positions that count, another number in each window."""
    return torch.arange(12)[None] < torch.arange(count)[:, None] % 11


def losses(steps):
    return [step.loss_nats for step in steps]


@pytest.mark.parametrize("accumulate", [2, 4])
@pytest.mark.parametrize("counted", [None, uneven()], ids=["all", "some"])
def test_an_update_in_several_passes_is_the_same_update(models, counted, accumulate):
    mix = [{"kind": "forward_kl"}, {"kind": "cross_entropy", "weight": 0.5}]
    at_once = distill_(*models(), texts(), recipe(loss=mix), counted=counted)
    divided = distill_(*models(), texts(), recipe(loss=mix, accumulate=accumulate), counted=counted)
    assert losses(divided) == pytest.approx(losses(at_once), rel=1e-5)


def test_layers_computed_twice_train_the_same(models):
    assert losses(distill_(*models(), texts(), recipe(checkpointing=True))) == pytest.approx(
        losses(distill_(*models(), texts(), recipe())), rel=1e-6
    )


def test_what_requires_no_gradient_is_not_moved(models):
    student, teacher = models()
    student.requires_grad_(False)
    student.model.layers[0].requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    distill_(student, teacher, texts(), recipe(evaluate={"every": 2, "windows": 4}))
    moved = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("model.layers.0.") for name in moved)


def test_held_out_windows_are_never_trained_on_and_measured_as_said(models):
    student, teacher = models()
    numbered = torch.arange(24)[:, None].expand(24, 12).contiguous()  # a window is known by its token
    trained, measured = set(), set()

    def see(_, inputs, __):
        (trained if torch.is_grad_enabled() else measured).update(inputs[0][:, 0].tolist())

    student.model.embed_tokens.register_forward_hook(see)
    said = {"steps": 13, "evaluate": {"every": 5, "windows": 6}}
    steps = distill_(student, teacher, numbered, recipe(**said))
    assert len(measured) == 6
    assert trained == set(range(24)) - measured
    assert [step.step for step in steps if step.held_out_nats is not None] == [4, 9, 12]


def test_the_weights_of_the_best_step_are_kept(models):
    student, teacher = models()
    said = {"learning_rate": 1.0, "warmup_steps": 8, "steps": 8, "evaluate": {"every": 1, "windows": 4}}
    steps = distill_(student, teacher, texts(), recipe(**said))
    best = min(steps, key=lambda step: step.held_out_nats)
    assert best.step < 7  # so large a rate ruins it
    assert steps[-1].held_out_nats > 1.1 * best.held_out_nats
    short = {**said, "evaluate": {"every": best.step + 1, "windows": 4}}  # measured at the best step and at the end
    again, _ = models()
    assert distill_(again, teacher, texts(), recipe(**short))[best.step].held_out_nats == best.held_out_nats
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("count", [24, 30])
def test_more_windows_held_out_than_there_are_is_refused(models, count):
    with pytest.raises(CompressError, match=rf"^evaluate.windows: {count} of 24 leave none to train on; lower it"):
        distill_(*models(), texts(), recipe(evaluate={"every": 2, "windows": count}))


PROGRAM = """
import json, sys, time
from pathlib import Path
import torch
sys.path[:0] = [{here!r}, {root!r}]
from compress.checkpoint.load import load_model
from compress.distill.train import distill_
from accelerate import PartialState
from test_distill_loop import recipe, texts, uneven

torch.set_num_threads(1)
folder, said = Path(sys.argv[1]), json.loads(sys.argv[2])
kept = folder / "kept" if said.pop("keep", False) else None
pause = said.pop("pause", 0.0)
student, teacher = load_model(folder / "student"), load_model(folder / "teacher")
def watch(step):
    print("step", step.step, flush=True)
    time.sleep(pause)
steps = distill_(student, teacher, texts(), recipe(**said), counted=uneven(), watch=watch, kept=kept)
if PartialState().is_main_process:
    weight = student.state_dict()["model.layers.1.mlp.up_proj.weight"]
    (folder / "steps.json").write_text(json.dumps([[s.loss_nats for s in steps], weight.double().sum().item(),
        [s.held_out_nats for s in steps]]))
"""


def program(folder):
    path = folder / "program.py"
    path.write_text(PROGRAM.format(here=str(HERE), root=str(HERE.parent)), "utf8")
    return str(path)


def environment():
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_", "DVC_"))}
    return kept | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def launched(folder, said, **more):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, program(folder), str(folder), json.dumps(said)], env=environment(), capture_output=True, text=True,
        check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "steps.json").read_text("utf8"))


def here(models, said):
    student, teacher = models()
    steps = distill_(student, teacher, texts(), recipe(**said), counted=uneven())
    return losses(steps), student.model.layers[1].mlp.up_proj.weight.double().sum().item(), steps


FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer", "FSDP_RESHARD_AFTER_FORWARD": "true",
}  # fmt: skip


@pytest.mark.parametrize("more", [{}, FSDP], ids=["DDP", "FSDP"])
def test_two_processes_train_as_one_does(tmp_path, models, more):
    said = {"loss": [{"kind": "forward_kl"}, {"kind": "cross_entropy"}], "evaluate": {"every": 3, "windows": 4}}
    expected, weight, steps = here(models, said)
    divided = said | {"accumulate": 2, "save_every": 4, "keep": True}
    found, found_weight, held_out = launched(tmp_path, divided, **more)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found_weight == pytest.approx(weight, rel=1e-3)
    assert held_out[-1] == pytest.approx(steps[-1].held_out_nats, rel=1e-4)
    assert launched(tmp_path, divided, **more) == [found, found_weight, held_out]  # on from the fourth step


def test_a_batch_that_does_not_divide_is_refused_with_the_number_that_would(models):
    with pytest.raises(ValueError, match="batch: 4 windows do not divide into 3 passes of accumulate"):
        recipe(accumulate=3)


def test_a_killed_training_goes_on_to_the_same_losses_and_weights(tmp_path, models):
    said = {"steps": 12, "save_every": 3, "evaluate": {"every": 2, "windows": 4}}
    expected, weight, _ = here(models, said)
    arguments = [program(tmp_path), str(tmp_path)]
    patient = json.dumps(said | {"keep": True, "pause": 0.2})
    with subprocess.Popen(
        [sys.executable, *arguments, patient], env=environment(), stdout=subprocess.PIPE, text=True
    ) as running:
        for line in running.stdout:
            if line == "step 7\n":
                running.send_signal(signal.SIGKILL)
                break
    assert running.returncode == -signal.SIGKILL
    assert not (tmp_path / "steps.json").exists()
    done = subprocess.run(
        [sys.executable, *arguments, json.dumps(said | {"keep": True})], env=environment(), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("step 6\n")  # what was done by the state of the sixth is not done again
    found, found_weight, _ = json.loads((tmp_path / "steps.json").read_text("utf8"))
    assert found == expected
    assert found_weight == weight


def test_a_full_disk_leaves_the_state_before(tmp_path, models):
    """The second state finds no room: one line says so, and the training goes on from the first."""
    said, seen = recipe(steps=9, save_every=3), []
    with full_disk() as fill_up:

        def watch(step):
            seen.append(step.step)
            if step.step == 4:
                fill_up(2**14)

        with pytest.raises(CompressError, match=r"training.safetensors: not written \(.*\); free space and run again"):
            distill_(*models(), texts(), said, watch=watch, kept=tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["training.safetensors"]
    again = []
    steps = distill_(*models(), texts(), said, watch=lambda step: again.append(step.step), kept=tmp_path / "kept")
    assert (seen[-1], again[0]) == (5, 3)
    assert losses(steps) == losses(distill_(*models(), texts(), said))


def test_a_state_that_is_damaged_is_named(tmp_path, models):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "training.safetensors").write_bytes(b"no state")
    with pytest.raises(CompressError, match=r"training.safetensors: no state of a training .*; remove it and run"):
        distill_(*models(), texts(), recipe(), kept=tmp_path / "kept")
