"""An artifact goes to a hub as one commit by the hub's own client, with a card whose metadata a hub takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fake_artifacts import fake_artifact
from hub_receiver import receiver
from huggingface_hub import ModelCard

from registry.card import model_card
from registry.errors import RegistryError
from registry.hub import complete_card, require_metadata
from registry.manifest import read, seal, verify

TABLE = "| metric | value |\n| --- | ---: |\n| kl_nats | 0.0156 |"
PUSH = """
import sys
from pathlib import Path
from registry.errors import RegistryError
from registry.hub import push_to_hub
try:
    print(push_to_hub(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
except RegistryError as error:
    sys.exit(str(error))
"""


def card(**changes):
    facts = {
        "name": "awq-w4",
        "kind": "quantized",
        "recipe": {},
        "origin": {"source": "org/base"},
        "base_model": "org/base",
    }
    return model_card(**(facts | changes), quant_method="awq")


@pytest.fixture
def artifact(tmp_path):
    fake_artifact(tmp_path / "awq-w4")
    said = read(tmp_path / "awq-w4").model_dump()
    (tmp_path / "awq-w4" / "manifest.json").unlink()
    (tmp_path / "awq-w4" / "README.md").write_text(card())
    seal(
        tmp_path / "awq-w4", **{k: said[k] for k in ("kind", "recipe", "parents", "data", "seed", "origin", "versions")}
    )
    return tmp_path / "awq-w4"


def push(folder, address, hub):
    """In a process of its own, because the client reads its hub's address when it is imported."""
    env = os.environ | {"HF_ENDPOINT": hub, "HF_TOKEN": "hf_tests", "PYTHONPATH": str(Path(__file__).parents[1])}
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder.parent / "hf")}
    return subprocess.run(
        [sys.executable, "-c", PUSH, str(folder), address, TABLE], env=env, capture_output=True, text=True, check=False
    )


def test_every_file_is_in_the_commit_and_the_card_has_the_table(artifact, tmp_path):
    with receiver() as (hub, state):
        done = push(artifact, "hf://team/awq", hub)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "hf://team/awq: " in done.stdout
        taken = state.repositories["team/awq"]
    assert taken["private"] is True
    assert set(taken["files"]) == {*verify(artifact).files, "manifest.json"}
    for name in set(taken["files"]) - {"README.md"}:
        assert taken["files"][name] == (artifact / name).read_bytes()
    shown = taken["files"]["README.md"].decode()
    assert TABLE in shown
    assert shown.startswith((artifact / "README.md").read_text().split("## Serving")[0])


def test_a_hub_that_refuses_is_one_line(artifact):
    with receiver() as (hub, state):
        state.refuse_card = True
        done = push(artifact, "hf://team/awq", hub)
        assert state.repositories["team/awq"]["files"] == {}
    assert done.returncode == 1
    assert "hf://team/awq: refused: " in done.stderr.splitlines()[-1]
    down = push(artifact, "hf://team/awq", "http://127.0.0.1:1")
    assert "hf://team/awq: refused: " in down.stderr.splitlines()[-1]
    assert "hf_tests" not in done.stderr + down.stderr


def test_what_names_no_repository_is_refused(artifact):
    done = push(artifact, "hf://awq", "http://127.0.0.1:1")
    assert done.stderr.splitlines()[-1].startswith("hf://awq: names no repository of a hub; write hf://ORG/NAME")


@pytest.mark.parametrize("kind", ["base", "pruned", "distilled", "quantized"])
def test_the_cards_that_we_write_have_metadata_that_a_hub_takes(kind):
    for text in (card(kind=kind), card(kind=kind, base_model=None), card(kind=kind, license_name="apache-2.0")):
        require_metadata(complete_card(text, TABLE), "here")
        said = ModelCard(text, ignore_metadata_errors=False).data
        assert said.pipeline_tag == "text-generation"
        assert (said.base_model is None) == ("base_model" not in text)
    assert ModelCard(card(kind="quantized")).data.to_dict()["base_model_relation"] == "quantized"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base_model": "/srv/models/x/y"}, "base_model: '/srv/models/x/y': is no id ORG/NAME"),
        ({"base_model_relation": "pruned"}, "is none of adapter, finetune, merge, quantized"),
        ({"base_model": None}, "has no base_model beside it"),
        ({"tags": [1]}, "tags: [1]: is no list of words"),
        ({"pipeline_tag": None}, "pipeline_tag: None: is no word"),
    ],
)
def test_metadata_that_a_hub_would_refuse_is_refused_here_first(change, words):
    front = yaml.safe_load(card().split("---\n")[1]) | change
    text = f"---\n{yaml.safe_dump({k: v for k, v in front.items() if v is not None})}---\n# x\n"
    with pytest.raises(RegistryError) as refused:
        require_metadata(text, "here")
    assert words in str(refused.value)


def test_a_card_without_metadata_is_refused():
    for text in ("# x", "---\na: [\n---\n# x"):
        with pytest.raises(RegistryError, match="metadata"):
            require_metadata(text, "here")
