"""docs/pruning.md and docs/distillation.md say what the measured files, the recipes and the code say."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from pydantic import TypeAdapter
from safetensors.torch import load_file
from test_distill_loop import FSDP, models, recipe, texts  # noqa: F401 - models is a fixture
from test_readme import renderer

from compress.checkpoint.config import ModelConfig
from compress.checkpoint.model import build_model
from compress.distill.cache import fill
from compress.distill.compiled import PAYS_AFTER
from compress.distill.losses import Loss
from compress.prune.budget import CONTEXT
from compress.prune.mix import LEAST_SHARE
from compress.prune.recipe import Compensation, DepthRecipe, MixRecipe, WidthRecipe
from pipelines.params import DistillVariant, OwnWords, load
from pipelines.variants import PruneVariant

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import readme_pruned

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text("utf8") for name in ("pruning", "distillation")}
PRUNING, DISTILLATION = PAGES.values()
PUBLISHED = json.loads((ROOT / "benchmarks" / "results" / "published_pruning.json").read_text("utf8"))


def shown(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def launches():
    """The command lines of the page that spread the stage, their continued lines joined."""
    lines = "".join(shown(DISTILLATION, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("accelerate launch")]


# --- figures


@pytest.mark.parametrize("name", PAGES)
def test_every_figure_is_the_one_in_the_measured_files(name):
    module, page = renderer(), PAGES[name]
    assert module.PAGES[f"docs/{name}.md"] is module.readme_pruned.SECTIONS
    assert module.render(page, module.PAGES[f"docs/{name}.md"]) == page


def test_every_section_stands_on_one_of_the_pages():
    named = re.findall(r"<!-- (\w+)", PRUNING + DISTILLATION)
    assert sorted(set(named) - {"end"}) == sorted(readme_pruned.SECTIONS)


def test_what_others_published_has_its_source_and_what_makes_it_another_measurement():
    rows = [*PUBLISHED["cuts"], *PUBLISHED["repairs"]]
    assert len(rows) > 10
    assert [row["work"] for row in rows if not row["differs"] or not row["source"].startswith("https://")] == []
    assert all(f"[{row['work']}]({row['source']})" in PRUNING for row in [*rows, *PUBLISHED["caches"]])


def test_shares_of_what_others_published_are_those_that_they_state():
    table = {line.split("|")[2].strip(): line for line in PRUNING.splitlines() if line.startswith("| [")}
    assert "| 95.6 % | 28 % |" in table["Qwen3-8B, 14 % fewer parameters"]
    assert "| 64 % |" in table["Qwen3-8B, 20 % smaller"]
    assert "| 86 % |" in table["Llama-2-7B, int4"]


def test_each_of_our_ways_to_cut_stands_beside_what_others_published():
    rows = json.loads((ROOT / "benchmarks" / "results" / "prune_distill.json").read_text("utf8"))
    ours = [line for line in readme_pruned.beside().splitlines() if "**turbopress**" in line]
    assert len(ours) == len({(row["model"], row["way"]) for row in rows})


def test_an_entry_of_a_top_k_cache_takes_the_bytes_that_the_page_says(tmp_path, models):  # noqa: F811
    said = recipe(cache={"top_k": 5}, loss={"kind": "top_k_kl", "k": 5})
    fill(tmp_path / "cache", models()[1], texts(), said)
    stored = [load_file(path) for path in (tmp_path / "cache").iterdir()]
    size = sum(tensor.nbytes for window in stored for tensor in window.values())
    assert size == readme_pruned.BYTES_AN_ENTRY * 5 * texts().numel()
    assert f"{readme_pruned.BYTES_AN_ENTRY} bytes an entry and token" in DISTILLATION


# --- recipes


def test_every_variant_that_the_pages_show_is_taken():
    (pruned,) = shown(PRUNING, "yaml")
    read = [TypeAdapter(PruneVariant).validate_python(raw) for raw in yaml.safe_load(pruned)["prune"].values()]
    assert {variant.method for variant in read} == {"depth", "width", "mix"}
    blocks = [yaml.safe_load(block) for block in shown(DISTILLATION, "yaml")]
    students = [DistillVariant.model_validate(raw) for block in blocks for raw in block["distill"].values()]
    assert [student.train is None for student in students] == [True, True, False]
    assert [OwnWords.model_validate(raw).windows for raw in blocks[0]["generate"].values()] == [512]


def test_the_whole_way_that_the_page_shows_is_in_order_beside_the_repository_s_own_variants(tmp_path):
    way = yaml.safe_load(shown(DISTILLATION, "yaml")[1])
    ours = yaml.safe_load((ROOT / "params.yaml").read_text("utf8"))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(ours | {family: ours[family] | way[family] for family in way}))
    params = load(tmp_path)
    parents = [params.parents(key)["from"] for key in ("narrow", "taught", "taught-w4", "repaired")]
    assert parents == ["base", "narrow", "taught", "taught-w4"]
    assert params.unsaid == []


def test_every_key_of_a_pruning_recipe_is_on_the_page_with_its_default():
    fields = {
        name: field for kind in (DepthRecipe, WidthRecipe, MixRecipe) for name, field in kind.model_fields.items()
    }
    assert [name for name in fields if not re.search(rf"`{name}\b|{name}:", PRUNING)] == []
    for name in ("windows", "group_size", "tensor_parallel", "damping"):
        assert f"`{name}` ({fields[name].default}" in PRUNING
    assert Compensation().damping == fields["damping"].default
    assert f"{CONTEXT:,} tokens before it" in PRUNING
    assert (LEAST_SHARE, "of which a quarter stays at least" in PRUNING) == (0.25, True)


def test_every_loss_is_on_the_page_with_its_settings():
    kinds = {kind.model_fields["kind"].annotation.__args__[0]: kind for kind in losses()}
    rows = {line.split("`")[1]: line for line in DISTILLATION.splitlines() if line.startswith("| `")}
    for name, kind in kinds.items():
        settings = kind.model_fields.keys() - {"kind", "weight"}
        assert [setting for setting in settings if f"`{setting}`" not in rows[name]] == []
    assert f"a training of {PAYS_AFTER} updates or more" in DISTILLATION


def losses():
    """The classes of all losses."""
    inner = Loss.__args__[0]
    return inner.__args__


# --- several GPUs


def test_the_lines_for_several_gpus_set_what_two_processes_are_tested_with():
    environments = []
    for words in launches():
        args = launch_command_parser().parse_args(words[2:])
        args.num_machines, args.mixed_precision, args.dynamo_backend = 1, "no", "no"
        environments.append(prepare_multi_gpu_env(args))
        assert (args.training_script, args.module, args.num_processes) == ("pipelines.distill", True, 2)
    ddp, fsdp = environments
    assert "ACCELERATE_USE_FSDP" not in ddp
    assert {name: fsdp[name] for name in FSDP} == FSDP
    assert fsdp["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"  # as where it is not set


def test_the_lines_for_several_gpus_give_the_stage_the_paths_of_dvc_yaml():
    said = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf8"))["stages"]["distill"]["do"]["cmd"]
    values = {"key": "student", "item.from": "shallow", "item.teacher": "base", "item.data": "own-words"}
    for name, value in values.items():
        said = said.replace(f"${{{name}}}", value)
    assert len(launches()) == 2
    for words in launches():
        assert words[words.index("-m") :] == said.split()[1:]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_layers_that_fsdp_divides_have_the_names_on_the_page(family):
    fields = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "head_dim": 8}
    fields |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = build_model(ModelConfig(family, fields))
    assert type(model.model.layers[0]).__name__ in DISTILLATION


@pytest.mark.parametrize("name", PAGES)
def test_every_link_is_there(name):
    page = ROOT / "docs" / f"{name}.md"
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        place, _, heading = link.partition("#")
        if not place.startswith("https://"):
            target = page.parent / place
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf8"), re.MULTILINE)
            assert not heading or heading in {title.lower().replace(" ", "-") for title in titles}


def test_a_whole_20b_was_pruned_on_one_gpu_and_24_gb_of_host_memory():
    rows = json.loads((ROOT / "benchmarks" / "results" / "prune_speed.json").read_text("utf8"))
    whole = [row for row in rows if row["shape"] == "20b" and row["layers"] == row["of_layers"] == 48]
    (row,) = (row for row in whole if row["device"] != "cpu")
    assert max(row["host_gib"], row["peak_host_gib"]) * 2**30 <= 24e9
