"""Another batch size sums in another order: single codes come out otherwise, the model hardly."""

from pathlib import Path

import pytest
import torch
from agreement import LINEAR, MODEL, divergences
from test_resume import content
from tokenizers import Tokenizer

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import ModelWriter
from compress.corpus import CorpusRecipe, make_windows, read_documents
from compress.quantize.recipe import AwqRecipe, Learned
from compress.quantize.resources import Resources
from compress.quantize.walk import quantize_model

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "demo" / "base"
TEXT = CorpusRecipe(source="examples/demo/text/calibration.jsonl", windows=32, length=128)
RECIPES = {
    "light": AwqRecipe(damping=0.2),  # as the demo has it
    "learned": AwqRecipe(rounding=Learned(method="learned", steps=8, held_out=4)),
}
LAYERS = 2  # of the demo's 8: each is rounded four times here, and that takes seconds


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The demo's first layers and its head."""
    folder, checkpoint = tmp_path_factory.mktemp("base"), Checkpoint(BASE)
    writer = ModelWriter(folder, checkpoint.config.replace(num_hidden_layers=LAYERS), "llama")
    for n in range(LAYERS):
        writer.layer(n, checkpoint.tensors(checkpoint.layer_names(n)))
    writer.outer(checkpoint.tensors(checkpoint.outer_names()))
    writer.close()
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Windows of the demo's text to calibrate on, and others to measure on."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(BASE, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    every = torch.from_numpy(make_windows(read_documents(TEXT, ROOT), tokenizer, TEXT).tokens)
    return every[::2], every[1::2].long()


def quantized(base, out, tokens, recipe, batch):
    out.mkdir()
    checkpoint = Checkpoint(base)
    writer = ModelWriter(out, checkpoint.config.replace(torch_dtype="float16"), "llama")
    return quantize_model(checkpoint, tokens, recipe, writer, Resources(batch=batch))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_another_batch_size_gives_a_language_model_as_near_to_its_base(tmp_path, base, texts, recipe):
    calibration, held_out = texts
    some, others = (quantized(base, tmp_path / str(batch), calibration, recipe, batch) for batch in (8, 3))
    assert content(tmp_path / "8") != content(tmp_path / "3")  # else nothing is compared here
    assert [row.error for row in others] == pytest.approx([row.error for row in some], rel=LINEAR)
    lost, lost_by_other, _ = divergences(base, tmp_path / "8", tmp_path / "3", held_out)
    assert lost_by_other == pytest.approx(lost, rel=MODEL)


def test_the_readme_states_the_tolerance_that_is_tested():
    said = " ".join((ROOT / "README.md").read_text("utf8").split())
    assert f"a linear's output error by {100 * LINEAR:g} % at most, the model's KL by {100 * MODEL:g} %" in said
