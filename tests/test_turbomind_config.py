"""What TurboMind reads in a config.json otherwise than the model was trained is refused; LMDeploy itself is asked."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import CONFIG, write_config
from tiny_repository import write_source
from turbomind_check import MISSING, PROGRAM, ask, interpreter

from compress.checkpoint.config import parse_config
from compress.checkpoint.convert import write_in_layout
from compress.quantize.turbomind import problems as contract_problems
from serving.errors import ServingError
from serving.profile import EngineProfile, fitted, problems
from serving.shape import parse_shape

TESTS = Path(__file__).parent
THETA = {"rope_theta": 1e6}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 2048}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LONG = {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 64, "long_factor": [4.0] * 64}
DYNAMIC, LINEAR = {"type": "dynamic", "factor": 2.0}, {"type": "linear", "factor": 2.0}
SIZES = {
    "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 1024, "max_position_embeddings": 8192,
    "tie_word_embeddings": False, "torch_dtype": "float16",
}  # fmt: skip
NAMES = {"llama": "LlamaForCausalLM", "internlm2": "InternLM2ForCausalLM"}
INSIDE = "where the engine may take 10,000 for it; write it"
DIFFER = "rope_scaling and rope_parameters differ, and which is read depends on transformers; leave one out"
ALL, FEWER = "default, linear, dynamic, llama3", "default, linear, dynamic"
ELSEWHERE = "serve it with --engine transformers"

TAKEN = {  # by a name: what config.json says, and how transformers 4 would say the same to a Llama
    "nothing": ({}, {}),
    "theta": (THETA, THETA),
    "empty sections": (THETA | {"rope_scaling": None, "rope_parameters": None}, THETA),
    "linear": (THETA | {"rope_scaling": LINEAR}, THETA | {"rope_scaling": LINEAR}),
    "dynamic": (THETA | {"rope_scaling": DYNAMIC}, THETA | {"rope_scaling": DYNAMIC}),
    "llama3": (THETA | {"rope_scaling": LLAMA3}, THETA | {"rope_scaling": LLAMA3}),
    "of transformers 5": ({"rope_parameters": THETA | {"rope_type": "default"}}, THETA),
    "of both": (
        THETA | {"rope_scaling": LINEAR, "rope_parameters": THETA | {"rope_type": "linear", "factor": 2.0}},
        THETA | {"rope_scaling": LINEAR},
    ),
}
REFUSED = {  # by a name: what config.json says, how that is meant, and what is told; None where readers differ in it
    "theta outside": (
        THETA | {"rope_parameters": {"rope_type": "default"}}, THETA,
        f"rope_theta is 1,000,000 outside rope_parameters, {INSIDE} inside them",
    ),
    "theta inside": (
        {"rope_scaling": LINEAR | THETA}, THETA | {"rope_scaling": LINEAR},
        f"rope_theta is 1,000,000 inside rope_scaling, {INSIDE} beside it",
    ),
    "theta null": (
        {"rope_theta": None}, {}, "rope_theta is null, at which the engine ends; write the published value"
    ),
    "two truths": (
        THETA | {"rope_scaling": LINEAR, "rope_parameters": THETA | {"rope_type": "default"}},
        THETA | {"rope_scaling": LINEAR}, DIFFER,
    ),
    "no kind": (
        THETA | {"rope_scaling": {"factor": 2.0}}, THETA,
        f"rope_scaling names no rope_type, the engine takes {ALL}; write which it is",
    ),
    "no kind of transformers 5": (
        {"rope_parameters": THETA}, THETA,
        f"rope_parameters names no rope_type, the engine takes {ALL}; write which it is",
    ),
    "longrope": (
        THETA | {"rope_scaling": LONG}, THETA, f"rope_scaling is longrope, the engine takes {ALL}; {ELSEWHERE}"
    ),
    "yarn": (
        THETA | {"rope_scaling": YARN}, THETA | {"rope_scaling": YARN},
        f"rope_scaling is yarn, whose ramp TurboMind 0.18 puts elsewhere than it was trained; {ELSEWHERE}",
    ),
    "yarn, not lengthened": (
        THETA | {"rope_scaling": YARN | {"original_max_position_embeddings": 8192}},
        THETA | {"rope_scaling": YARN | {"original_max_position_embeddings": 8192}},
        f"rope_scaling is yarn, whose ramp TurboMind 0.18 puts elsewhere than it was trained; {ELSEWHERE}",
    ),
}  # fmt: skip


def raw(layout, **said):
    return SIZES | {"architectures": [NAMES[layout]], "model_type": layout} | said


def told(layout, **said):
    return problems(EngineProfile(), parse_shape(raw(layout, **said), "config.json"))


# --- positions


@pytest.mark.parametrize("name", TAKEN)
def test_positions_that_every_reader_turns_alike_are_taken(name):
    assert told("llama", **TAKEN[name][0]) == []
    assert bool(told("internlm2", **TAKEN[name][0])) == (name == "llama3")


@pytest.mark.parametrize("name", REFUSED)
def test_positions_that_the_engine_turns_otherwise_are_refused(name):
    said, _, line = REFUSED[name]
    assert told("llama", **said) == [line]
    assert told("internlm2", **said) == [line.replace(ALL, FEWER)]


def test_a_kind_that_only_the_other_layout_has_says_so():
    (line,) = told("internlm2", **THETA, rope_scaling=LLAMA3)
    assert line == f"rope_scaling is llama3, the engine takes {FEWER}; convert to layout llama"


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "llama3", "yarn", "longrope", "su"])
@pytest.mark.parametrize("layout", NAMES)
def test_it_takes_nothing_that_the_quantizer_s_contract_refuses(layout, kind):
    """It refuses one kind more: the contract asks what the engine loads, and this what it then computes."""
    said = THETA | {"rope_scaling": LLAMA3 | {"rope_type": kind}}
    theirs = list(contract_problems(parse_config(raw(layout, **said), "config.json"), layout, None, 1))
    assert bool(told(layout, **said)) == (bool(theirs) or kind == "yarn")


def test_what_goes_to_the_other_engine_is_not_held_against_this_one():
    int8 = {"quantization_config": {"quant_method": "smooth_quant", "quant_dtype": "int8"}}
    assert told("internlm2", **THETA, **int8, rope_scaling=YARN, bias=True) == []


def test_the_language_model_of_a_whole_is_asked():
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "torch_dtype": "float16"}
    part = raw("internlm2", **THETA, rope_scaling=LLAMA3, bias=True)
    whole = {"architectures": ["InternVLChatModel"], "llm_config": part, "vision_config": vision}
    assert len(problems(EngineProfile(), parse_shape(whole, "config.json"))) == 2
    part["architectures"] = [NAMES["llama"]]
    assert problems(EngineProfile(), parse_shape(whole, "config.json")) == []


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"rope_theta": "1e6"}, "config.json: rope_theta is '1e6'; write the published values"),
        ({"rope_scaling": "linear"}, "config.json: rope_scaling is 'linear'; write the published values"),
        (
            {"rope_scaling": {"type": "linear"}},
            "config.json: rope linear has factor None; write the published value",
        ),
    ],
)
def test_positions_that_say_nothing_are_one_line(said, line):
    with pytest.raises(ServingError) as refused:
        parse_shape(raw("llama", **said), "config.json")
    assert str(refused.value) == line


# --- biases


def test_biases_are_refused_where_the_engine_ends_at_them_or_leaves_them_out():
    assert told("internlm2", bias=True) == [
        "bias is true, at which TurboMind 0.18 ends in InternLM2's layout; convert to layout llama"
    ]
    assert told("llama", mlp_bias=True) == [
        f"mlp_bias is true, and TurboMind 0.18 adds no bias to gate_proj and up_proj; {ELSEWHERE}"
    ]
    assert told("llama", attention_bias=True) == told("llama", bias=True) == told("internlm2", bias=False) == []
    with pytest.raises(ServingError, match=r"^models/base: bias is true, at which TurboMind 0\.18 ends"):
        fitted(EngineProfile(), parse_shape(raw("internlm2", bias=True), "config.json"), "models/base")


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        (["mlp.gate_proj"], "layer 0 keeps gate_proj in 16 bits"),
        (["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"], "layer 1 keeps gate_proj and up_proj in 16"),
        (["up_proj", "down_proj"], "layer 0 keeps down_proj and up_proj in 16 bits"),
        (["down_proj"], None), (["mlp"], None), (["lm_head", "q_proj"], None),
    ],
)  # fmt: skip
def test_a_feed_forward_of_which_the_engine_joins_no_half_is_refused(kept, named):
    found = told("llama", quantization_config=AWQ | {"modules_to_not_convert": kept})
    assert len(found) == (named is not None)
    assert all(line.startswith(named) and line.endswith("with all three or none of them") for line in found)


def test_every_command_that_serves_by_this_engine_refuses(turbopress, tmp_path):
    write_config(tmp_path, CONFIG | {"bias": True})
    for command in (("serve", tmp_path, "--dry-run"), ("memory", tmp_path, "--gpu", "24GiB")):
        status, out, err = turbopress(*command)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "bias is true, at which TurboMind 0.18 ends in InternLM2's layout; convert to layout llama" in err


# --- LMDeploy itself


@pytest.mark.skipif(not PROGRAM.is_dir(), reason=MISSING)
def test_the_engine_s_own_numbers_are_the_reason(tmp_path):
    """What is taken is turned as it was trained, in both layouts; of what is refused, nothing is, in Llama's."""
    told, apart = {**TAKEN, **{name: case[:2] for name, case in REFUSED.items()}}, {}
    cases = []
    for name, (said, rope) in told.items():
        for layout in NAMES:
            folder = tmp_path / f"{name}, {layout}"
            write_config(folder, raw(layout, **said))
            cases.append({"folder": str(folder), "rope": rope})
    python = interpreter()
    (library,) = (python.parents[1] / "lib").glob("python*/site-packages/lmdeploy/turbomind/_turbomind*.so")
    environment = os.environ | {"LD_LIBRARY_PATH": str(PROGRAM / "lib"), "PYTHONPATH": str(PROGRAM), "FAKE_CC": "90"}
    done = subprocess.run(
        [python, TESTS / "rope_in_turbomind.py", library],
        input=json.dumps(cases), env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for case, answer in zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True):
        apart[Path(case["folder"]).name] = answer
    for layout in NAMES:
        assert {name: apart[f"{name}, {layout}"] for name in TAKEN} == pytest.approx(dict.fromkeys(TAKEN, 0), abs=1e-5)
    served_alike = [
        name for name in REFUSED for found in [apart[f"{name}, llama"]] if not isinstance(found, str) and found < 0.1
    ]
    assert served_alike == []


@pytest.mark.skipif(not PROGRAM.is_dir(), reason=MISSING)
def test_the_engine_ends_at_internlm2_s_biases_and_adds_none_inside_the_feed_forward(tmp_path):
    write_source(tmp_path / "source", bias=True)
    for layout in NAMES:
        (tmp_path / layout).mkdir()
        write_in_layout(tmp_path / "source", layout, tmp_path / layout)
    verdict = ask(interpreter(), tmp_path / "internlm2", "90")
    assert not verdict["ok"]
    assert "Sizes of tensors must match" in verdict["errors"][-1]
    _bias_the_feed_forward(tmp_path / "llama")
    command = [interpreter(), PROGRAM / "check.py", tmp_path / "llama", "--engine", "model_format=None", "--kernels"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    *kernels, verdict = done.stdout.splitlines()
    assert json.loads(verdict)["ok"]
    added = {line.split("ActivationKernel<")[1].split(",")[0] for line in kernels if "ActivationKernel<" in line}
    assert added == {"false"}  # its first parameter: whether a bias is added


def _bias_the_feed_forward(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        biases = {
            name.removesuffix("weight") + "bias": weight[:, 0].clone()
            for name, weight in tensors.items()
            if ".mlp." in name
        }
        save_file(tensors | biases, file, {"format": "pt"})
        index["weight_map"] |= dict.fromkeys(biases, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    write_config(folder, config | {"mlp_bias": True})
