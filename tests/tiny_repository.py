"""A repository of a few files: params.yaml, sealed models of two layers with a tokenizer of words, a text, reports."""

import json

import yaml
from tiny import CONFIG, windows, write_internlm2
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.convert import write_in_layout
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import ModelWriter
from compress.corpus import Windows, save_windows
from compress.quantize.recipe import AwqRecipe, Nearest
from compress.quantize.walk import quantize_model
from pipelines.stage import new_artifact, parent

MARKS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
WORDS = MARKS + [f"word{n}" for n in range(len(MARKS), CONFIG["vocab_size"])]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
RECIPE = AwqRecipe(scale=None, clip=None, rounding=Nearest(method="nearest"))
TEXT = {"windows": 4, "length": 16, "seed": 0}
PARAMS = {
    "base": {"source": "source", "revision": None},
    "data": {name: {"source": "text.txt", **TEXT} for name in ("calibration", "evaluation", "distillation")},
    "prune": {},
    "distill": {},
    "quantize": {key: {"from": "base", "data": "calibration"} for key in ("awq-w4", "not-made-yet")},
    "registry": {"model": "demo"},
}
METRICS = {"parameters": 1_500_000, "bits_per_weight": 16.0, "bits_per_linear_weight": 16.0, "size_ratio": 1.0}
REPORTS = {
    "base": {"size_bytes": 3_000_000, "perplexity": 12.0, "perplexity_delta": 0.0, "kl_nats": 0.0, "top1_agreement": 1},
    "awq-w4": {
        "size_bytes": 900_000,
        "perplexity": 12.5,
        "perplexity_delta": 0.5,
        "kl_nats": 0.04,
        "top1_agreement": 0.9,
    },
}


def make_repository(root):
    """Writes everything below `root`."""
    write_params(root)
    (root / "text.txt").write_text(" ".join(WORDS))
    (root / "reports").mkdir()
    for key, metrics in REPORTS.items():
        report = {"variant": key, "kind": "base" if key == "base" else "quantized", "metrics": METRICS | metrics}
        (root / "reports" / f"{key}.json").write_text(json.dumps(report))
    write_source(root / "source")
    write_base(root / "source", root / "models" / "base")
    write_quantized(root / "models" / "base", root / "models" / "awq-w4")
    return root


def make_base(root, num_windows=4, *, sections, **config):
    """What a stage that makes variants reads: params.yaml with some sections, the base, calibration windows in data."""
    write_params(root, **sections)
    write_source(root / "source", **config)
    write_base(root / "source", root / "models" / "base")
    write_text(root / "data", ["text"] * num_windows)
    return root


def write_params(root, **sections):
    """params.yaml, some of its sections other than usual."""
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS | sections, sort_keys=False))


def write_text(folder, domains, seed=0):
    """Windows of 16 tokens, one a domain, as a stage reads them."""
    text = Windows(windows(len(domains), 16, seed=seed).numpy().astype("int32"), list(domains))
    folder.mkdir(parents=True)
    save_windows(text, folder)
    return text


def write_source(folder, more_marks=(), seed=0, **config):
    """A float model in InternLM2's layout, with a tokenizer of whole words, the last of which may be marks."""
    write_internlm2(folder, CONFIG | {"num_hidden_layers": 2} | config, seed)
    words = [*WORDS[: len(WORDS) - len(more_marks)], *more_marks]
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([*MARKS, *more_marks])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def write_base(source, out):
    facts = {"recipe": {}, "parents": {}, "data": {}, "seed": None, "origin": {"source": "source"}}
    with new_artifact(out, kind="base", **facts) as folder:
        write_in_layout(source, "llama", folder)


def write_quantized(source, out):
    made_from, checkpoint = parent(source), Checkpoint(source)
    recipe = RECIPE.model_dump(mode="json")
    facts = {"parents": {"from": made_from}, "data": {}, "seed": None, "origin": made_from.origin}
    with new_artifact(out, kind="quantized", recipe=recipe, **facts) as folder:
        writer = ModelWriter(folder, checkpoint.config.replace(torch_dtype="float16"), "llama")
        quantize_model(checkpoint, windows(2), RECIPE, writer)
        write_tokenizer(source, folder)
