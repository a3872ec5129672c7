"""TurboMind's own loader takes whatever the default pipeline makes, in both layouts, as two kinds of GPU.

The loader is LMDeploy's, in an environment of its own; the GPU is emulated, so this proves nothing about numbers.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lmdeploy_environment import PROGRAM, interpreter

from pipelines.params import load

ROOT = Path(__file__).parents[1]
CHAT_END = "<|im_end|>"
LAYOUTS = {"llama": "LlamaForCausalLM", "internlm2": "InternLM2ForCausalLM"}
QUANTIZED = list(load(ROOT).quantize)
GPUS = ("80", "90")
CASES = [(key, layout, gpu) for key in QUANTIZED for layout in LAYOUTS for gpu in GPUS]
CASES += [("base", layout, "90") for layout in LAYOUTS]
# The tokens that the engine would stop at, by the same functions that its server calls.
STOPS = """
import json, sys
from lmdeploy.messages import GenerationConfig
from lmdeploy.utils import get_hf_gen_cfg
for folder in sys.argv[1:]:
    generation = GenerationConfig()
    generation.update_from_hf_gen_cfg(get_hf_gen_cfg(folder), None)
    print(json.dumps([folder, generation.stop_token_ids]))
"""

pytestmark = pytest.mark.skipif(not PROGRAM.is_dir(), reason="../shared/turbomind_check is not there")


@pytest.fixture(scope="module")
def python():
    return interpreter()


@pytest.fixture(scope="module")
def folders(pipeline, tmp_path_factory):
    """Each artifact in each layout: as the pipeline made it, and as `turbopress convert` writes it."""
    out = tmp_path_factory.mktemp("converted")
    for key in ["base", *QUANTIZED]:
        convert = ("-m", "pipelines.cli", "convert", f"models/{key}", "--layout", "internlm2", "--to", str(out / key))
        pipeline.run(sys.executable, *convert)
    places = {"llama": pipeline.folder / "models", "internlm2": out}
    return {(key, layout): places[layout] / key for key in ["base", *QUANTIZED] for layout in LAYOUTS}


def ask(python, folder, gpu):
    """The engine's verdict on a folder, as a GPU of this compute capability."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, PROGRAM / "check.py", folder, "--cc", gpu]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def verdicts(python, folders):
    """All verdicts, asked for two at a time."""
    with ThreadPoolExecutor(2) as pool:
        asked = {(key, layout, gpu): pool.submit(ask, python, folders[key, layout], gpu) for key, layout, gpu in CASES}
        return {case: verdict.result() for case, verdict in asked.items()}


def read(folder, name):
    return json.loads((folder / name).read_text("utf8"))


@pytest.mark.parametrize(("key", "layout", "gpu"), CASES)
def test_turbomind_loads_the_artifact_and_reads_it_as_it_is_meant(verdicts, folders, key, layout, gpu):
    verdict, config = verdicts[key, layout, gpu], read(folders[key, layout], "config.json")
    assert verdict["ok"], verdict
    assert config["architectures"] == [LAYOUTS[layout]]
    assert ("quantization_config" in config) == (key in QUANTIZED)
    assert verdict["dtype"] == ("float16" if key in QUANTIZED else config["torch_dtype"])
    heads = ("num_attention_heads", "num_key_value_heads", "head_dim")
    assert [verdict[name] for name in ("heads", "kv_heads", "head_dim")] == [config[name] for name in heads]
    assert verdict["rope"]["base"] == 1_000_000
    assert verdict["rope"]["max_pos"] == config["max_position_embeddings"]
    assert verdict["chat_template"] == "HFChatTemplate"  # the folder's own; without one it would be another class
    assert verdict["stop_words"] == [config["eos_token_id"]]  # the template's; test below: with the folder's


def test_turbomind_stops_at_the_end_of_a_chat_turn(python, folders):
    command = [python, "-c", STOPS, *folders.values()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    stops = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert len(stops) == len(folders)
    for folder in folders.values():
        added = {token["content"]: token["id"] for token in read(folder, "tokenizer.json")["added_tokens"]}
        assert {added[CHAT_END], read(folder, "config.json")["eos_token_id"]} <= set(stops[str(folder)])


def test_turbomind_refuses_an_artifact_without_one_of_its_shards(python, folders, tmp_path):
    """So the verdicts above are not given away."""
    shutil.copytree(folders[QUANTIZED[0], "llama"], tmp_path / "short")
    sorted((tmp_path / "short").glob("*.safetensors"))[1].unlink()
    assert ask(python, tmp_path / "short", "90")["ok"] is False
