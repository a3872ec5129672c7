"""Compiled, a training gives the losses that it gives without; unless it is said, it is compiled where that pays."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from formats import write_in_scheme
from tiny import CONFIG, write_internlm2

from compress.checkpoint.load import load_model
from compress.distill.compiled import PAYS_AFTER, compiled, resolved
from compress.distill.recipe import DistillRecipe

# What torch's own compiler imports warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

SAID = {"steps": 3, "batch": 4, "learning_rate": 0.003, "warmup_steps": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 128, "vocab_size": 128}
SMALL = CONFIG | HEADS | {"num_hidden_layers": 1}
HERE = Path(__file__).parent
COMPILER = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")


def recipe(**said):
    return DistillRecipe.model_validate(SAID | said)


def program(code, *arguments):
    """Runs code in a process of its own, which knows the tests' modules."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}"},
    )  # fmt: skip


PROGRAM = """
import json, sys
from pathlib import Path
import torch
from tiny import windows
from compress.checkpoint.load import load_model
from compress.distill.quantized import load_quantized
from compress.distill.recipe import DistillRecipe
from compress.distill.train import distill_

torch.set_num_threads(1)
folder, found = Path(sys.argv[1]), []
for said in json.loads(sys.argv[2]):
    recipe, teacher = DistillRecipe.model_validate(said), load_model(folder / "teacher")
    train = recipe.train
    student = load_model(folder / "student") if train is None else load_quantized(folder / "w4", train)
    found.append([step.loss_nats for step in distill_(student, teacher, windows(12, 16, 128), recipe)])
    assert not any(layer._compiled_call_impl for layer in (*student.model.layers, *teacher.model.layers))
print(json.dumps(found))
"""


@pytest.mark.skipif(COMPILER is None, reason="torch compiles for a CPU with a C++ compiler, and there is none")
def test_compiled_and_eager_losses_agree_of_16_bits_and_of_a_repair(tmp_path):
    """In a process of its own: the shapes that are checked while tests run are nothing that torch can compile."""
    write_internlm2(tmp_path / "teacher", SMALL)
    write_internlm2(tmp_path / "student", SMALL, seed=1)
    write_in_scheme(tmp_path / "teacher", tmp_path / "w4", "awq-128", "llama", ())
    losses = [{"kind": "forward_kl"}, {"kind": "hidden", "weight": 4.0}]
    said = [
        SAID | {"train": train, "compile": compile_, "loss": losses}
        for train in (None, "scales")
        for compile_ in (False, True)
    ]
    ran = program(PROGRAM, str(tmp_path), json.dumps(said))
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    for eager, compiled_ in (found[:2], found[2:]):
        assert compiled_ == pytest.approx(eager, rel=5e-3)
        assert eager[-1] != pytest.approx(eager[0], rel=5e-3)  # so that it was trained at all


COUNT = """
import json, sys
from pathlib import Path
from torch._dynamo.testing import CompileCounter
from tiny import windows
from compress.distill.quantized import load_quantized
from compress.distill.repair import Codes, Scales
from compress.distill.stream import run

found = []
for train in (Scales(method="scales"), Codes(method="codes")):
    student, counter = load_quantized(Path(sys.argv[1]), train), CompileCounter()
    for layer in student.model.layers:
        layer.compile(backend=counter)
    run(student, windows(2, 16, 128))
    found.append(counter.frame_count)
print(json.dumps(found))
"""


def test_all_layers_of_a_repair_share_what_is_compiled(tmp_path):
    """Beyond eight of a function torch compiles no more: layers that each had their own would mostly run as before."""
    write_internlm2(tmp_path / "teacher", SMALL | {"num_hidden_layers": 12})
    write_in_scheme(tmp_path / "teacher", tmp_path / "w4", "awq-128", "llama", ())
    ran = program(COUNT, str(tmp_path / "w4"))
    assert ran.returncode == 0, ran.stderr[-3000:]
    most = 2  # the first layer's input may need no gradient, that of the others does
    assert all(count <= most for count in json.loads(ran.stdout.splitlines()[-1])), ran.stdout


def test_layers_are_compiled_while_a_training_lasts_and_no_longer(tmp_path):
    write_internlm2(tmp_path, SMALL)
    model = load_model(tmp_path)
    with compiled(model):
        assert all(layer._compiled_call_impl is not None for layer in model.model.layers)
    assert all(layer._compiled_call_impl is None for layer in model.model.layers)


@pytest.mark.parametrize(
    ("said", "device", "expected"),
    [
        ({"steps": PAYS_AFTER}, "cuda", True),
        ({"steps": PAYS_AFTER - 1}, "cuda", False),
        ({"steps": PAYS_AFTER}, "cpu", False),
        ({"steps": PAYS_AFTER, "compile": False}, "cuda", False),
        ({"steps": 3, "compile": True}, "cpu", True),
        ({"steps": PAYS_AFTER, "loss": {"kind": "attention_relation"}}, "cuda", False),
    ],
)
def test_unless_it_is_said_a_training_is_compiled_where_that_pays(monkeypatch, said, device, expected):
    monkeypatch.setattr("compress.distill.compiled._can_compile", lambda: True)
    assert resolved(recipe(**said), torch.device(device)).compile is expected


def test_nothing_is_compiled_where_nothing_can(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert resolved(recipe(steps=PAYS_AFTER), torch.device("cuda")).compile is False


def test_the_steps_that_the_recipe_names_are_those_of_the_code():
    assert f"{PAYS_AFTER} steps" in DistillRecipe.model_fields["compile"].description
