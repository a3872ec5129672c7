"""A quantized artifact's layers can be made again from what its manifest names, and a false one is found out."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_repository import WORDS, write_base, write_source, write_text

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.tokenizer import write_tokenizer
from compress.checkpoint.write import ModelWriter
from compress.quantize.resources import Resources
from compress.quantize.walk import quantize_model
from pipelines.commands.checking import text_named
from pipelines.params import ParamsError
from pipelines.rederive import Rederived, rederive
from pipelines.stage import new_artifact, parent
from pipelines.variants import AwqVariant
from registry.errors import RegistryError
from registry.manifest import read, seal

RECIPE = {"from": "base", "scale": None, "clip": None, "feedback": None, "rounding": {"method": "nearest"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, its quantized child and the windows between them."""
    root = tmp_path_factory.mktemp("made")
    assert len(WORDS) > 1
    write_source(root / "source")
    write_base(root / "source", root / "models" / "base")
    given = write_text(root / "calibration", ["text"] * 4)
    recipe = AwqVariant.model_validate(RECIPE)
    source, checkpoint = parent(root / "models" / "base"), Checkpoint(root / "models" / "base")
    with new_artifact(
        root / "models" / "awq-w4", kind="quantized", recipe=recipe.model_dump(by_alias=True, mode="json"),
        parents={"from": source}, data={"calibration": given.digest}, seed=None, origin=source.origin,
        made_on=Resources().decides,
    ) as folder:  # fmt: skip
        writer = ModelWriter(folder, checkpoint.config.replace(torch_dtype="float16"), recipe.layout)
        quantize_model(checkpoint, torch.from_numpy(given.tokens).long(), recipe, writer)
        write_tokenizer(root / "models" / "base", folder)
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    shutil.copytree(made, tmp_path / "here")
    return tmp_path / "here"


def again(here, count=2):
    return rederive(here / "models" / "awq-w4", count, [here / "models" / "base"], here / "calibration")


def forge(folder, change, **made_on):
    """Changes the second layer's tensors and seals the folder again, as a forger would."""
    shard = folder / "model-00003-of-00004.safetensors"
    tensors = load_file(shard)
    change(tensors)
    shard.unlink()
    save_file(tensors, shard, {"format": "pt"})
    said = read(folder)
    (folder / "manifest.json").unlink()
    facts = said.model_dump() | {"made_on": said.made_on | made_on}
    seal(folder, **{k: v for k, v in facts.items() if k not in ("format", "files")})


def test_every_layer_of_an_honest_artifact_comes_out_again(here):
    assert again(here) == Rederived([0, 1])
    assert again(here, 99) == Rederived([0, 1])
    assert len(again(here, 1).layers) == 1


def up(tensors, part):
    return next(name for name in tensors if name.endswith(f"mlp.up_proj.{part}"))


def test_made_elsewhere_what_is_lost_is_compared_and_not_the_bytes(here):
    def flip(tensors):
        tensors[up(tensors, "qweight")][0, 0] ^= 1

    forge(here / "models" / "awq-w4", flip, device="a GPU", workers=2)
    found = again(here)
    assert found.layers == [0, 1]
    assert "device a GPU, here cpu" in found.elsewhere
    assert "workers 2, here 1" in found.elsewhere


def test_made_elsewhere_what_loses_more_is_found_all_the_same(here):
    def scale(tensors):
        tensors[up(tensors, "scales")] = tensors[up(tensors, "scales")] * 1.1

    forge(here / "models" / "awq-w4", scale, device="a GPU")
    with pytest.raises(RegistryError, match=r"made again, layers\.1\.mlp\.up_proj \(.* % stored, .* % here\) came out"):
        again(here)


def test_one_changed_code_is_found_although_the_folder_was_sealed_again(here):
    def flip(tensors):
        name = next(n for n in tensors if n.endswith("mlp.up_proj.qweight"))
        tensors[name] = tensors[name].clone()
        tensors[name][0, 0] ^= 1

    forge(here / "models" / "awq-w4", flip)
    with pytest.raises(RegistryError, match=r"made again, model.layers.1.mlp.up_proj.qweight came out otherwise;"):
        again(here)


def test_a_changed_norm_is_found_too(here):
    def nudge(tensors):
        name = next(n for n in tensors if n.endswith("input_layernorm.weight"))
        tensors[name] = tensors[name] + torch.tensor(0.01, dtype=tensors[name].dtype)

    forge(here / "models" / "awq-w4", nudge)
    with pytest.raises(RegistryError, match=r"input_layernorm.weight came out otherwise"):
        again(here)


def test_other_windows_and_another_parent_are_refused(here):
    with pytest.raises(RegistryError, match=r"which is not here; give it with --parent FOLDER"):
        rederive(here / "models" / "awq-w4", 1, [here / "models" / "awq-w4"], here / "calibration")
    shutil.rmtree(here / "calibration")
    write_text(here / "calibration", ["text"] * 4, seed=9)
    with pytest.raises(RegistryError, match=r"holds windows .*, but .* was made on"):
        again(here)


def test_a_base_has_nothing_to_be_made_again_from(here):
    with pytest.raises(ParamsError, match=r"is base, and only quantization is done again; leave --rederive out"):
        rederive(here / "models" / "base", 1, [], here / "calibration")


def test_other_versions_of_the_libraries_are_named_when_layers_differ(here):
    folder = here / "models" / "awq-w4"
    forge(
        folder,
        lambda tensors: tensors.update(
            {
                next(n for n in tensors if n.endswith("up_proj.scales")): next(
                    v for n, v in tensors.items() if n.endswith("up_proj.scales")
                )
                * 2
            }
        ),
    )
    content = json.loads((folder / "manifest.json").read_text())
    content["versions"]["torch"] = "2.5.0"
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(RegistryError, match=r"\(torch was 2\.5\.0, here 2\.\d"):
        again(here)


def test_the_windows_are_found_by_their_digest_under_whatever_name(tmp_path):
    texts = {name: write_text(tmp_path / name, ["text"] * 4, seed=n) for n, name in enumerate(("calibration", "own"))}
    for name, text in texts.items():
        assert text_named(text.digest, tmp_path) == tmp_path / name
    assert text_named("0" * 64, tmp_path) == tmp_path / "calibration"
