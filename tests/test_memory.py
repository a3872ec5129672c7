"""The memory planner against readings of real cards, the engine's own allocations, and its command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, hub
from lmdeploy_environment import executable
from tiny import CONFIG
from turbomind_check import MISSING, PROGRAM, interpreter

from pipelines.serve import require_memory
from serving.choices import Load, choices, choose
from serving.errors import ServingError
from serving.gpus import Gpu, default_batch, parse_size
from serving.memory import CONTEXT_BYTES, block_bytes, cache_tokens, plan, weights_bytes, workspace_bytes
from serving.profile import EngineProfile, batched
from serving.shape import parse_shape, read_shape

ROOT = Path(__file__).parents[1]
MIB, CARD = 2**20, 24 * 2**30
RESULTS = ROOT / "benchmarks" / "results"
INTERNLM2_CHAT_1_8B = json.loads((RESULTS / "internlm2_chat_1_8b.json").read_text("utf8"))
READINGS = json.loads((RESULTS / "tutorial_readings.json").read_text("utf8"))
SHAPE = parse_shape(INTERNLM2_CHAT_1_8B, "config.json")
ALLOCATIONS = json.loads((RESULTS / "engine_allocations.json").read_text("utf8"))


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(INTERNLM2_CHAT_1_8B))
    return tmp_path / "config.json"


# --- what was measured


@pytest.mark.parametrize("row", READINGS, ids=str)
def test_the_tutorial_s_readings_are_met_within_3_percent(row):
    planned = plan(SHAPE, EngineProfile(cache_max_entry_count=row["cache"]), CARD, row["weight_bits"])
    assert planned.total_bytes / MIB == pytest.approx(row["read_mib"], rel=0.03)


@pytest.mark.parametrize("row", ALLOCATIONS, ids=lambda row: json.dumps(row["engine"] | row["model"])[:200])
def test_the_engine_allocates_what_is_planned(row):
    shape = parse_shape({"architectures": ["InternLM2ForCausalLM"], **row["model"]}, "config.json")
    profile = EngineProfile(**row["engine"])
    block = block_bytes(shape, profile)
    assert weights_bytes(shape, 1, 16) == pytest.approx(row["weights_bytes"], rel=0.001)
    assert workspace_bytes(shape, profile) == pytest.approx(row["workspace_bytes"], rel=0.02)
    assert block == row["block_bytes"]
    assert cache_tokens(row["slab_bytes"], block) == row["slab_blocks"] * 64
    free = plan(shape, profile, CARD + CONTEXT_BYTES).kv_cache_bytes  # the emulated card holds no context
    assert free == pytest.approx(row["kv_cache_bytes"], rel=0.001)


CARDS = [
    ("NVIDIA H200", 1024), ("NVIDIA H100 80GB HBM3", 1024), ("NVIDIA H800", 1024), ("NVIDIA L20Y", 1024),
    ("NVIDIA A100-SXM4-80GB", 384), ("NVIDIA A800 80GB PCIe", 384), ("NVIDIA GeForce RTX 4090", 128),
    ("NVIDIA L20", 128), ("NVIDIA A10", 128), ("", 128),
]  # fmt: skip


@pytest.mark.parametrize(("card", "batch"), CARDS)
def test_the_batch_is_the_one_that_lmdeploy_takes_on_the_card(card, batch):
    """Checked against LMDeploy's own table below, where LMDeploy is."""
    assert default_batch(card) == batch
    assert batched(EngineProfile(), card).max_batch_size == batch
    assert batched(EngineProfile(max_batch_size=7), card).max_batch_size == 7


@pytest.mark.skipif(not PROGRAM.is_dir(), reason=MISSING)
def test_lmdeploy_s_own_table_of_batches_says_the_same():
    told = (
        "import json, sys, torch, lmdeploy.utils as u\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    torch.cuda.get_device_name = lambda n, name=name: name\n"
        "    print(u.get_max_batch_size('cuda'))\n"
    )
    names = json.dumps([card for card, _ in CARDS])
    done = subprocess.run([interpreter(), "-c", told, names], capture_output=True, text=True, check=True)
    assert [int(line) for line in done.stdout.split()] == [batch for _, batch in CARDS]


def test_a_larger_batch_takes_workspace():
    small, large = (plan(SHAPE, batched(EngineProfile(), card), CARD) for card in ("L4", "H200"))
    assert large.workspace_bytes - small.workspace_bytes > 300 * MIB


# --- what follows from what


def test_parts_add_up_and_the_cache_is_its_share_of_what_weights_leave():
    planned = plan(SHAPE, EngineProfile(cache_max_entry_count=0.4), CARD)
    parts = (planned.weights_bytes, planned.kv_cache_bytes, planned.workspace_bytes, planned.context_bytes)
    assert planned.total_bytes == sum(parts)
    assert planned.kv_cache_bytes == int(0.4 * (CARD - planned.weights_bytes - planned.context_bytes))


def test_narrower_kv_remembers_more_but_its_scales_take_their_part():
    tokens = [plan(SHAPE, EngineProfile(quant_policy=bits), CARD).tokens for bits in (0, 8, 4)]
    assert 1.8 < tokens[1] / tokens[0] < 2
    assert 3.4 < tokens[2] / tokens[0] < 4


def test_two_gpus_halve_the_weights_and_the_bytes_of_a_token():
    one, two = (plan(SHAPE, EngineProfile(tp=tp), CARD) for tp in (1, 2))
    assert two.weights_bytes == pytest.approx(one.weights_bytes / 2, rel=1e-6)
    assert two.token_bytes * 2 == one.token_bytes


def test_kv_heads_fewer_than_gpus_are_repeated_not_halved():
    shape = parse_shape({**INTERNLM2_CHAT_1_8B, "num_key_value_heads": 2}, "config.json")
    assert block_bytes(shape, EngineProfile(tp=2)) == block_bytes(shape, EngineProfile(tp=4))


def test_sessions_take_whole_blocks():
    planned = plan(SHAPE, EngineProfile(), CARD)
    assert planned.sessions(65) == planned.sessions(128) == planned.tokens // 128


def test_a_card_that_is_too_small_says_by_how_much():
    planned = plan(SHAPE, EngineProfile(), 4 * 2**30)
    assert planned.missing_bytes == planned.total_bytes - 4 * 2**30 > 0
    assert not any(row.fits for row in choices(SHAPE, EngineProfile(), 2 * 2**30))


def test_the_choice_is_the_least_lossy_that_holds_the_load():
    rows = choices(SHAPE, EngineProfile(), CARD)
    easy, hard = (choose(rows, Load(sessions, 4096)) for sessions in (10, 190))
    assert (easy.weight_bits, easy.profile.quant_policy, easy.profile.cache_max_entry_count) == (16, 0, 0.2)
    assert (hard.weight_bits, hard.profile.quant_policy) == (4, 4)
    assert choose(rows, Load(1000, 4096)) is None


UNEVEN = INTERNLM2_CHAT_1_8B | {"intermediate_size": 8320}  # 65 groups of 128: half of them is no whole number


def test_a_4_bit_variant_that_the_gpus_could_not_share_is_not_offered(turbopress, tmp_path):
    shape = parse_shape(UNEVEN, "config.json")
    offered = {tp: {row.weight_bits for row in choices(shape, EngineProfile(tp=tp), CARD)} for tp in (1, 2)}
    assert offered == {1: {16, 4}, 2: {16}}
    (tmp_path / "config.json").write_text(json.dumps(UNEVEN))
    plan_for = ("memory", tmp_path / "config.json", "--tp", 2, "--gpu")
    status, out, err = turbopress(*plan_for, "24GiB", "--weights", "4bit")
    assert (status, out) == (1, "")
    assert "tp 2 gives down_proj 4160 inputs a GPU, and its kernels take multiples of 128; legal are 1\n" in err
    assert "lower --cache, or use a larger card" in turbopress(*plan_for, "1GiB")[1]


def test_a_server_on_too_small_a_card_names_a_4_bit_variant_only_where_there_could_be_one():
    said = []
    for config in (INTERNLM2_CHAT_1_8B, UNEVEN):
        cards = [Gpu("NVIDIA L4", 5 * 2**29, 0)] * 2
        with pytest.raises(ServingError) as refused:
            require_memory(parse_shape(config, "config.json"), EngineProfile(tp=2), cards, "base")
        said.append(str(refused.value))
    assert "; its 4-bit variant would fit: --cache " in said[0]
    assert said[1].endswith("; use a larger card or --tp")


@pytest.mark.parametrize(
    ("quantization", "bits", "spent"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4, 4.25),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4, 4.25),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8, 8),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32}}},
            },
            4,
            5,
        ),
    ],
    ids=lambda value: value["quant_method"] if isinstance(value, dict) else str(value),
)
def test_every_stored_format_has_its_bits(quantization, bits, spent):
    shape = parse_shape({**INTERNLM2_CHAT_1_8B, "quantization_config": quantization}, "config.json")
    assert shape.bits == bits
    linears = weights_bytes(shape, 1, bits) - 2 * shape.other_parameters
    assert 8 * linears / shape.linear_parameters == pytest.approx(spent, rel=1e-6)


def test_a_vision_tower_counts_among_the_weights():
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14}
    both = {"architectures": ["LlavaForConditionalGeneration"], "text_config": INTERNLM2_CHAT_1_8B}
    shape = parse_shape({**both, "vision_config": vision}, "config.json")
    assert shape.sees_images
    assert 0.29e9 < shape.vision_parameters < 0.32e9  # CLIP ViT-L/14 has 304 M
    assert weights_bytes(shape, 1, 16) - weights_bytes(SHAPE, 1, 16) == 2 * shape.vision_parameters


# --- the command


def test_the_command_plans_from_config_json_alone(turbopress, config):
    status, out, err = turbopress(
        "memory", config, "--gpu", "24GiB", "--cache", 0.4, "--kv", "int8", "--weights", "4bit", "--json"
    )
    told = json.loads(out)
    planned = plan(SHAPE, EngineProfile(cache_max_entry_count=0.4, quant_policy=8, session_len=32768), CARD, 4)
    assert (status, err) == (0, "")
    assert {key: told[key] for key in planned.as_dict()} == planned.as_dict()
    assert {"total_bytes", "weights_bytes", "kv_cache_bytes", "workspace_bytes", "tokens"} <= told.keys()


def test_the_card_s_name_decides_the_batch(turbopress, config):
    takes = {
        card: json.loads(turbopress("memory", config, "--gpu", "80GiB", "--card", card, "--json")[1])["workspace_bytes"]
        for card in ("H100", "L4")
    }
    assert takes["H100"] - takes["L4"] > 300 * MIB
    told = json.loads(turbopress("memory", config, "--gpu", "80GiB", "--max-batch", 1024, "--json")[1])
    assert told["workspace_bytes"] == takes["H100"]


def test_without_a_card_the_one_of_this_machine_is_planned_for(turbopress, config, tmp_path, monkeypatch):
    executable(tmp_path / "nvidia-smi", "echo 'NVIDIA H200, 143771, 771, GPU-0'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    told = json.loads(turbopress("memory", config, "--json")[1])
    named = json.loads(turbopress("memory", config, "--gpu", f"{143000}MiB", "--card", "H200", "--json")[1])
    assert told == named
    assert told["gpu_bytes"] == 143000 * MIB


def test_without_a_card_and_without_a_gpu_it_says_what_to_write(turbopress, config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, out, err = turbopress("memory", config)
    assert (status, out) == (1, "")
    assert err == (
        "turbopress: --gpu: this machine shows no GPU to plan for; say what the server has, as --gpu 24GiB\n"
    )


def planned_on_the_hub(address, tmp_path, *arguments):
    """In a process of its own: the hub's library reads its address when it is imported."""
    env = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    command = [sys.executable, "-m", "pipelines.cli", "memory", *arguments, "--gpu", "24GiB", "--json"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_a_model_on_the_hub_is_planned_from_its_config_json_alone(tmp_path):
    with hub() as (address, asked):
        done = planned_on_the_hub(address, tmp_path, "org/shaped", "--revision", COMMIT)
    assert done.returncode == 0, done.stderr
    here = plan(parse_shape(CONFIG, "here"), EngineProfile(session_len=64, max_batch_size=128), CARD)
    assert json.loads(done.stdout)["total_bytes"] == here.total_bytes
    assert {path for path in asked if "safetensors" in path} == set()
    assert any("config.json" in path for path in asked)


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        ("org/shaped", "main", "--revision main: is no commit; write its 40 hex digits"),
        ("org/nothing", COMMIT, f"org/nothing at {COMMIT}: Hugging Face gave no config.json ("),
    ],
)
def test_a_hub_that_does_not_give_it_is_one_line(tmp_path, name, revision, said):
    with hub() as (address, _):
        done = planned_on_the_hub(address, tmp_path, name, "--revision", revision)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"turbopress: {said}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_the_table_the_advice_and_the_picture(turbopress, config, tmp_path):
    picture = tmp_path / "memory.png"
    arguments = ("memory", config, "--gpu", "24GiB", "--load", "32x4096", "--table", "--picture", picture)
    status, out, _ = turbopress(*arguments)
    assert status == 0
    assert out.count("16-bit") == 16  # fifteen rows and the advice
    assert "32 sessions of 4,096 tokens: 16-bit weights, --cache 0.8 --kv none --tp 1" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--gpu", "24"), "'24': is no size; write 24GiB or 80GB"),
        (("--gpu", "24GiB", "--kv", "int2"), "--kv: int2; choose none, int8 or int4"),
        (("--gpu", "24GiB", "--weights", "3bit"), "--weights: 3bit; choose 4bit or 16bit"),
        (("--gpu", "24GiB", "--cache", "1.5"), "--cache: 1.5; choose a share between 0 and 1"),
        (("--gpu", "24GiB", "--load", "many"), "--load: many; write sessions x tokens, as 32x4096"),
        (("--gpu", "24GiB", "--tp", "3"), "tp 3 does not divide 16 heads with 8 kv heads; legal are 1, 2, 4, 8, 16"),
        (("--gpu", "24GiB", "--session-len", "99999"), "session_len 99999 is longer than the model's 65536 positions"),
    ],
)
def test_bad_flags_are_one_line_with_the_remedy(turbopress, config, flags, said):
    status, out, err = turbopress("memory", config, *flags)
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert said in err


def test_a_broken_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ServingError, match="is not JSON"):
        read_shape(tmp_path)
    with pytest.raises(ServingError, match="hidden_size is None"):
        parse_shape({}, "config.json")
    with pytest.raises(ServingError, match="no configuration there"):
        read_shape(tmp_path / "nothing.json")


def test_sizes_have_units():
    assert (parse_size("24GiB"), parse_size("80 GB"), parse_size("0.5MiB")) == (24 * 2**30, 80 * 10**9, 2**19)
