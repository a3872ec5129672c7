"""Vision-language folders: the language model out, compressed, and back in; what sees stays as it is."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lmdeploy_environment import PROGRAM, emulated, server_interpreter
from safetensors.torch import save_file
from tiny_repository import WORDS, write_base, write_quantized
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
from vision_models import TILINGS, tensors_of, write_internvl, write_llava, write_llava_next

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.load import load_model
from compress.checkpoint.vision import VisionLanguage, give, language_quantization, take, whole_quantization
from compress.errors import CompressError
from compress.quantize.formats import awq, compressed_tensors
from registry.manifest import verify
from serving import pipeline
from serving.errors import ServingError
from serving.profile import EngineProfile, problems, require_lmdeploy_s
from serving.shape import read_shape

ROOT = Path(__file__).parents[1]
WRITERS = {"internvl": write_internvl, "llava": write_llava, "llava-next": write_llava_next}

# By class: the pieces that an image becomes in the prompt, its pixels' shape, and what else the model is told of it.
# LLaVA-Next sees an image of 28 × 56 small (4 pieces) and in two tiles (8, with a newline after each of 2 rows).
SEEN = {
    "internvl": (1, (1, 3, 28, 28), {}),
    "llava": (4, (1, 3, 28, 28), {}),
    "llava_next": (4 + 8 + 2, (1, 3, 3, 28, 28), {"image_sizes": torch.tensor([[28, 56]])}),
}


class Made:
    """A vision-language folder, its language model, that in 4 bits, and the whole with it."""

    def __init__(self, root, write):
        self.whole = write(root / "whole")
        self.language, self.base, self.small, self.joined = (
            root / name for name in ("language", "base", "small", "joined")
        )
        self.language.mkdir()
        take(self.whole, self.language)
        write_base(self.language, self.base)
        write_quantized(self.base, self.small)
        self.joined.mkdir()
        give(self.whole, self.small, self.joined)


@pytest.fixture(scope="module", params=WRITERS)
def made(request, tmp_path_factory):
    return Made(tmp_path_factory.mktemp(request.param), WRITERS[request.param])


def test_the_language_model_alone_is_an_ordinary_model(made):
    checkpoint = Checkpoint(made.language)
    assert checkpoint.config.num_layers == 2
    taken, whole = tensors_of(made.language), tensors_of(made.whole)
    assert all(torch.equal(t, whole[f"language_model.{name}"]) for name, t in taken.items())
    assert len(taken) == sum(name.startswith("language_model.") for name in whole)


def test_what_sees_is_the_same_after_quantization_and_the_language_model_is_not(made):
    joined, seeing = tensors_of(made.joined), dict(VisionLanguage.read(made.whole).seeing())
    assert {name for name in joined if not name.startswith("language_model.")} == seeing.keys()
    assert all(torch.equal(joined[name], seeing[name]) for name in seeing)
    assert sum(name.endswith(".qweight") for name in joined) == 2 * 7
    before = sorted(t.numel() for name, t in tensors_of(made.whole).items() if not name.startswith("language_model."))
    assert sum(before) == sum(t.numel() for t in seeing.values())  # nothing lost, nothing made up


def test_the_joined_model_says_what_is_quantized_and_runs_no_code(made):
    config = json.loads((made.joined / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "awq"
    assert {"vision_tower", "multi_modal_projector"} < set(config["quantization_config"]["modules_to_not_convert"])
    assert not any("auto_map" in path.read_text() for path in made.joined.glob("*.json"))
    assert not list(made.joined.glob("*.py"))


def test_the_stock_class_takes_every_tensor_of_a_float_model(made, tmp_path):
    """And sees: another image changes what it expects to read next."""
    give(made.whole, made.language, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    token = getattr(config, "image_token_id", None) or config.image_token_index
    pieces, shape, told = SEEN[config.model_type]
    ids = torch.tensor([[1, 7, *[token] * pieces, 9]])
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (model(input_ids=ids, pixel_values=image, **told).logits[0, -1] for image in images)
    assert torch.isfinite(one).all()
    assert not torch.allclose(one, other, atol=1e-3)


def test_internvl_s_tokenizer_has_what_its_processor_asks_for_and_writes_images_into_the_prompt(tmp_path):
    """LMDeploy makes the processor too. Its template was of texts alone: parts become one text, and texts stay."""
    made = Made(tmp_path, write_internvl)
    tokenizer = AutoTokenizer.from_pretrained(made.joined)
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    assert all(0 <= getattr(tokenizer, f"{name}_id") < len(WORDS) for name in names)  # inside the embeddings
    image, text = {"type": "image"}, {"type": "text", "text": "word100"}
    said = {role: [{"role": "user", "content": c}] for role, c in (("parts", [image, text]), ("text", "word100"))}
    prompts = {name: tokenizer.apply_chat_template(one, tokenize=False) for name, one in said.items()}
    assert prompts["parts"] == prompts["text"].replace("word100", "<IMG_CONTEXT>\nword100")
    before = AutoTokenizer.from_pretrained(made.small).apply_chat_template(said["text"], tokenize=False)
    assert prompts["text"] == before


def test_llava_s_tower_has_the_hub_s_names_whoever_saved_it(tmp_path):
    """transformers 5 leaves a level of CLIP's names out, and LMDeploy 0.18 asks for it."""
    whole = write_llava(tmp_path / "whole")
    short = {name for name in tensors_of(whole) if name.startswith("vision_tower.")}
    given = {name for name, _ in VisionLanguage.read(whole).seeing() if name.startswith("vision_tower.")}
    assert given == {name.replace("vision_tower.", "vision_tower.vision_model.", 1) for name in short}
    saved = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): t for name, t in tensors_of(whole).items()}
    save_file(saved, whole / "model.safetensors", {"format": "pt"})
    assert dict(VisionLanguage.read(whole).seeing()).keys() == {n for n in saved if not n.startswith("language_model")}


def rewrite(folder, change):
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("whole", "sees"), [("float32", "float32"), ("float16", None), ("bfloat16", "float16"), ("float16", "bfloat16")]
)
def test_an_internvl_of_two_types_is_refused_where_the_engine_would_end(made, tmp_path, whole, sees):
    give(made.whole, made.base, tmp_path)
    seeing = json.loads((tmp_path / "config.json").read_text())["vision_config"] | {"torch_dtype": sees}
    rewrite(tmp_path, lambda config: config | {"torch_dtype": whole, "vision_config": seeing})
    found, ends = problems(EngineProfile(), read_shape(tmp_path)), made.whole.parent.name.startswith("internvl")
    told = f"dtype is {whole} and vision_config's {sees or 'not said'}"
    refused = f"{told}, which ends the engine at the first image; write float16 or bfloat16 in both"
    assert found == ([refused] if ends else [])  # LLaVA is served by another engine


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_parts_of_what_is_given_back_are_of_the_language_model_s_type(made, tmp_path, dtype):
    """Types that the checkpoint said before, by either name, are those of other numbers."""
    whole, base, out = (tmp_path / name for name in ("whole", "base", "out"))
    shutil.copytree(made.whole, whole)
    shutil.copytree(made.base, base)
    rewrite(whole, lambda config: config | {"dtype": "float32"})
    rewrite(base, lambda config: config | {"torch_dtype": dtype})
    out.mkdir()
    give(whole, base, out)
    config = json.loads((out / "config.json").read_text())
    parts = (config, config["text_config"], config["vision_config"])
    assert [(part.get("dtype"), part["torch_dtype"]) for part in parts] == [(None, dtype)] * 3
    assert not problems(EngineProfile(), read_shape(out))


def test_internvl_s_fused_attention_is_three_linears(tmp_path):
    whole = write_internvl(tmp_path / "whole")
    fused, parts = tensors_of(whole), dict(VisionLanguage.read(whole).seeing())
    at = "vision_tower.encoder.layer.1.attention."
    joined = torch.cat([parts[f"{at}{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(joined, fused["vision_model.encoder.layers.1.attn.qkv.weight"])


def test_giving_back_what_was_taken_changes_no_language_tensor(made, tmp_path):
    give(made.whole, made.base, tmp_path)
    given = {name.removeprefix("language_model."): t for name, t in tensors_of(tmp_path).items()}
    assert all(torch.equal(given[name], t) for name, t in tensors_of(made.base).items())


def test_the_language_model_inside_is_the_quantized_one(made, tmp_path):
    take(made.joined, tmp_path)
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        inside, small = (load_model(folder)(tokens).logits for folder in (tmp_path, made.small))
    assert torch.allclose(inside, small, atol=1e-5)


@pytest.mark.parametrize("said", [awq.quantization_config, compressed_tensors.quantization_config])
def test_what_the_language_model_keeps_in_16_bits_the_whole_keeps_by_its_own_names(said):
    language = said(128, ["model.layers.1.mlp.down_proj"])
    whole = whole_quantization(language)
    (kept,) = (whole[key] for key in ("modules_to_not_convert", "ignore") if key in whole)
    assert {"lm_head", "language_model.model.layers.1.mlp.down_proj"} < set(kept)
    assert all(any(part in name for name in kept) for part in ("vision_tower", "multi_modal_projector"))
    assert language_quantization(whole) == language


def test_each_part_of_a_quantized_llava_says_so_in_its_own_section(made):
    """LMDeploy's PyTorch engine builds the language model from its section alone."""
    config = json.loads((made.joined / "config.json").read_text())
    expected = config["quantization_config"] if made.whole.parent.name.startswith("llava") else None
    assert config["text_config"].get("quantization_config") == expected


def test_the_planner_counts_what_sees(made):
    shape = read_shape(made.joined)
    assert shape.sees_images
    assert (shape.bits, shape.quant_method) == (4, "awq")


def test_a_language_model_of_another_width_is_refused(made, tmp_path):
    from tiny import CONFIG, write_internlm2

    write_internlm2(tmp_path / "other", CONFIG | {"hidden_size": 128})
    (tmp_path / "out").mkdir()
    with pytest.raises(CompressError, match=r"hidden_size is 128, but .* needs 256"):
        give(made.whole, tmp_path / "other", tmp_path / "out")


def test_what_sees_nothing_is_refused(made):
    with pytest.raises(CompressError, match="is no vision-language model of ours; choose InternVLChatModel"):
        VisionLanguage.read(made.language)


def test_the_commands_take_and_give(made, tmp_path):
    run = [sys.executable, "-m", "pipelines.cli", "vision"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*run, "take", made.whole, "--to", tmp_path / "language"], env=env, check=True, capture_output=True)
    told = [*run, "give", made.small, "--vision", made.whole, "--to", tmp_path / "joined"]
    subprocess.run(told, env=env, check=True, capture_output=True)
    assert tensors_of(tmp_path / "language").keys() == tensors_of(made.language).keys()
    manifest = verify(tmp_path / "joined")
    assert (manifest.kind, manifest.parents) == ("quantized", {"language": verify(made.small).digest})


def test_llava_next_keeps_its_newline_and_its_tilings(tmp_path):
    """The newline is a tensor of no module; without the tilings each image would be cut in another way."""
    made = Made(tmp_path, write_llava_next)
    assert torch.equal(tensors_of(made.joined)["image_newline"], tensors_of(made.whole)["image_newline"])
    assert json.loads((made.joined / "config.json").read_text())["image_grid_pinpoints"] == TILINGS
    processor = json.loads((made.joined / "processor_config.json").read_text())
    assert processor["image_processor"]["image_grid_pinpoints"] == TILINGS
    assert read_shape(made.joined).architecture == "LlavaNextForConditionalGeneration"


@pytest.mark.parametrize("write", [write_llava, write_llava_next])
def test_a_quantized_llava_answers_about_an_image_in_this_process(tmp_path, monkeypatch, write):
    from PIL import Image

    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    made = Made(tmp_path, write)
    for n, color in enumerate(("red", "blue")):
        Image.effect_noise((40, 30), 90 * (n + 1)).convert("RGB").save(tmp_path / f"{color}.png")
    pipe = pipeline(made.joined, engine="transformers")
    told = {"max_tokens": 6, "temperature": 0}
    red, again, blue = (
        pipe("word100 word200", images=[tmp_path / f"{c}.png"], **told).text for c in ("red", "red", "blue")
    )
    assert red == again
    assert set(red.split()) <= set(WORDS)
    assert pipe("word100 word200", **told).text  # and without one
    assert red != blue
    elsewhere = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]
    with pytest.raises(ServingError, match="send its bytes"):
        list(pipe.stream(elsewhere))


def test_a_published_internvl_is_refused_in_this_process_with_what_to_do(tmp_path):
    folder = write_internvl(tmp_path / "internvl")
    with pytest.raises(ServingError) as refused:
        pipeline(folder, engine="transformers")
    assert str(refused.value) == (
        f"{folder}: InternVLChatModel is a class that comes with the checkpoint, and its code is not run here; "
        "write it for the stock class by `turbopress vision take` and `give`"
    )


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is here: it answers")
def test_an_internvl_whose_processor_wants_torchvision_is_refused_in_one_line(tmp_path):
    made = Made(tmp_path, write_internvl)
    with pytest.raises(ServingError, match=r"joined: its processor cannot be made \(.*torchvision.*\); serve it by"):
        pipeline(made.joined, engine="transformers")


@pytest.mark.skipif(not PROGRAM.is_dir(), reason="../shared/turbomind_check is not there")
def test_lmdeploy_fails_at_llava_next_which_is_why_it_is_refused(tmp_path):
    """Once this fails, LMDeploy has mended it: `UNMAKEABLE` can go."""
    made = Made(tmp_path, write_llava_next)
    (tmp_path / "site").mkdir()  # LMDeploy asks accelerate for this, and the environment has none
    (tmp_path / "site" / "accelerate.py").write_text("from contextlib import nullcontext as init_empty_weights\n")
    told = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
from lmdeploy.archs import get_model_arch
from lmdeploy.vl.model.llava_next import LlavaNextVisionModel
config = get_model_arch({str(made.joined)!r})[1]
LlavaNextVisionModel({str(made.joined)!r}, with_llm=False, hf_config=config, backend="pytorch").build_preprocessor()
"""
    done = subprocess.run([server_interpreter(), "-c", told], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("TypeError: LlavaNextForConditionalGeneration.__init__()"), (
        done.stderr
    )
    with pytest.raises(ServingError, match=r"LMDeploy 0\.18 fails at LlavaNextForConditionalGeneration with every"):
        require_lmdeploy_s(read_shape(made.joined), "llava")


@pytest.mark.skipif(not PROGRAM.is_dir(), reason="../shared/turbomind_check is not there")
def test_turbomind_loads_internvl_with_the_quantized_language_model(tmp_path):
    made = Made(tmp_path, write_internvl)  # its pipeline wants torchvision, so the engine itself is asked
    env = emulated(tmp_path / "lmdeploy", server_interpreter())
    told = f"""
from lmdeploy import TurbomindEngineConfig
from lmdeploy.archs import get_model_arch
from lmdeploy.turbomind import TurboMind
from lmdeploy.turbomind.converter import _resolve_dtype
from lmdeploy.vl.engine import _get_hf_config_mm_feature_dtype
config = get_model_arch({str(made.joined)!r})[1]
print("PIXELS", _get_hf_config_mm_feature_dtype(config))
print("TOWER", _resolve_dtype("auto", config.vision_config, {{"float16", "bfloat16"}}))
told = TurbomindEngineConfig(model_format="awq", session_len=128, max_batch_size=2, cache_max_entry_count=0.1)
engine = TurboMind.from_pretrained({str(made.joined)!r}, engine_config=told)
print("LOADED", engine.model_comm is not None, flush=True)
import os; os._exit(0)
"""
    done = subprocess.run([env["LMDEPLOY_PYTHON"], "-c", told], capture_output=True, text=True, check=False)
    assert {"PIXELS torch.float16", "TOWER float16"} <= set(done.stdout.splitlines()), done.stdout + done.stderr[-3000:]
    assert "LOADED True" in done.stdout, done.stdout[-1500:] + done.stderr[-3000:]
