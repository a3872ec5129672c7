"""Bad input ends in one clear line a problem, exit status 1, and nothing half-written: asked of the real stages."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tiny_repository import METRICS, REPORTS, WORDS, write_base, write_params, write_source, write_text

from pipelines.stage import one_line_errors
from registry.manifest import read

pytest_plugins = ["fake_stores"]  # `template`, a database with MLflow's tables
ROOT = Path(__file__).parent.parent
NEAREST = {"from": "base", "scale": None, "clip": None, "rounding": {"method": "nearest"}}
SHARD = "models/base/model-00002-of-00004.safetensors"
STAGES = {
    "check": ["data/sources"],
    "fetch": ["out/base"],
    "corpus": ["calibration", "models/base", "out/calibration"],
    "prune": ["shallow", "models/base", "data/calibration", "out/shallow", "out/trace"],
    "generate": ["own-words", "models/base", "data/calibration", "out/own-words"],
    "distill": ["student", "models/base", "models/base", "data/calibration", "out/student", "out/trace"],
    "quantize": ["awq-w4", "models/base", "data/calibration", "out/awq-w4", "out/trace"],
    "evaluate": ["base", "models/base", "models/base", "data/calibration", "out/base.json", "details/base"],
    "compare": ["reports", "evaluations"],
    "register": ["base", "models/base", "reports/base.json", "reports/base.json"],
}
PROGRESS = re.compile(r"(layer|batch|step) \d+ of \d+, [\d.]+ s, [\d.]+ s left(, [\d,]+ tokens/s)?")
NO_STORE = re.compile("turbopress: losses are not shown in MLflow: .*")  # which stops no training


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """params.yaml, a source, the base made from it, calibration windows, the base's report."""
    root = tmp_path_factory.mktemp("made")
    shallow = {"from": "base", "data": "calibration", "method": "depth", "remove_layers": 1}
    words = {"from": "base", "prompts": "calibration", "windows": 2, "length": 16, "prompt_tokens": 12}
    student = {"from": "shallow", "teacher": "base", "data": "calibration"}
    student |= {"steps": 1, "batch": 1, "learning_rate": 0.001, "warmup_steps": 0}
    write_params(
        root, prune={"shallow": shallow}, generate={"own-words": words}, distill={"student": student},
        quantize={"awq-w4": NEAREST | {"data": "calibration"}},
    )  # fmt: skip
    (root / "text.txt").write_text(" ".join(WORDS))
    write_text(root / "data" / "calibration", ["text"] * 4)
    write_source(root / "source")
    write_base(root / "source", root / "models" / "base")
    report = {"variant": "base", "kind": "base", "metrics": METRICS | REPORTS["base"]}
    report["artifact"] = read(root / "models" / "base").digest
    (root / "reports").mkdir()
    (root / "reports" / "base.json").write_text(json.dumps(report))
    return root


@pytest.fixture
def repository(made, tmp_path):
    shutil.copytree(made, tmp_path / "repository")
    return tmp_path / "repository"


def run(stage, cwd, *, before=(), **environment):
    """The stage as DVC runs it, in a process of its own, behind the command `before`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "TURBOPRESS_"))}
    threads = {"OMP_NUM_THREADS": "1", "TURBOPRESS_DEVICE": "cpu"}
    command = [*before, sys.executable, "-m", f"pipelines.{stage}", *STAGES[stage]]
    env = kept | threads | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def assert_refused(done, *expected):
    """Exit status 1, on stderr one line for each problem, and besides progress nothing else."""
    lines = [line for line in done.stderr.splitlines() if not (PROGRESS.fullmatch(line) or NO_STORE.fullmatch(line))]
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert len(lines) == len(expected), done.stderr
    for line, pattern in zip(lines, expected, strict=True):
        assert re.search(rf"^turbopress: .*{pattern}", line), line


def files(folder):
    """Every file with its size and the time of its last change."""
    places = [place for place in folder.rglob("*") if place.is_file()]
    return {place: (place.stat().st_size, place.stat().st_mtime_ns) for place in places}


def refused(repository, stage, *expected):
    """Runs a stage that is to refuse and to leave every file as it was."""
    before = files(repository)
    assert_refused(run(stage, repository), *expected)
    assert files(repository) == before
    assert not list(repository.rglob("*incoming*"))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


# --- params.yaml


@pytest.mark.parametrize("stage", ["check", "corpus"])
def test_all_problems_of_params_yaml_are_told_at_once(repository, stage):
    params = yaml.safe_load((repository / "params.yaml").read_text())
    params["base"]["sauce"] = "x"
    params["data"]["calibration"]["windows"] = "many"
    params["quantize"]["awq-w4"]["group_size"] = 64
    params["quantize"]["lost"] = {"from": "nobody"}
    depth = {"method": "depth", "remove_layers": 1}
    params["prune"] |= {"a": {"from": "b", **depth}, "b": {"from": "a", **depth}}
    (repository / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    refused(
        repository,
        stage,
        r"base\.sauce: unknown key",
        r"data\.calibration\.windows: input should be a valid integer, found 'many'",
        r"quantize\.awq-w4\.group_size: only 128 is taken by TurboMind, found 64",
        r"quantize\.lost\.from: no model is named nobody",
        r"prune\.a\.from: goes in a circle: a from b from a",
    )


# --- the base


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "architecture MistralForCausalLM is not supported; choose a base"),
        ({"num_key_value_heads": 3}, "4 heads do not divide by 3 kv heads; write the published values"),
        ({"hidden_size": "many"}, "hidden_size is 'many'; write the published values"),
        ({"num_key_value_heads": 1}, "wqkv.weight is 512×256, not 384×256.; config.json and weights disagree"),
        ({"hidden_act": "gelatine"}, r"config.json: makes no model \(.*gelatine.*\); write the published values"),
    ],
    ids=["architecture", "heads", "type", "sizes", "activation"],
)
def test_a_configuration_that_makes_no_model_is_refused(repository, changes, expected):
    edit(repository / "source" / "config.json", **changes)
    refused(repository, "fetch", f"{expected}.*")


def truncate(shard):
    os.truncate(shard, shard.stat().st_size - 1000)


def put_nan(shard):
    tensors = load_file(shard)
    tensors["model.layers.1.feed_forward.w2.weight"][3, 4] = float("nan")
    save_file(tensors, shard, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (truncate, r"damaged or truncated \(.*\); fetch it again"),
        (lambda shard: flip(shard, 12), r"damaged or truncated \(.*\); fetch it again"),
        (put_nan, "layers.1.mlp.down_proj.weight holds 1 values that are NaN or infinite; use another copy"),
    ],
    ids=["truncated", "altered", "nan"],
)
def test_damaged_weights_of_the_source_are_refused(repository, damage, expected):
    shard = repository / "source" / "model.safetensors"
    damage(shard)
    refused(repository, "fetch", f"{shard}: .*{expected}")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [(truncate, r"has \d+ bytes, expected \d+"), (lambda shard: flip(shard, -5), "was altered: its sha256 is")],
    ids=["truncated", "altered"],
)
@pytest.mark.parametrize("stage", ["quantize", "evaluate"])
def test_a_damaged_shard_of_an_artifact_is_refused(repository, stage, damage, expected):
    (repository / SHARD).chmod(0o644)
    damage(repository / SHARD)
    refused(repository, stage, f"models/base: {Path(SHARD).name} {expected}.*; make the artifact again")


@pytest.mark.parametrize("stage", ["prune", "generate", "distill", "quantize", "evaluate"])
def test_a_parent_that_is_not_there_is_refused(repository, monkeypatch, capsys, stage):
    """In this process: five that each import torch would take a minute."""
    shutil.rmtree(repository / "models" / "base")
    before, (key, *paths) = files(repository), STAGES[stage]
    monkeypatch.chdir(repository)
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")
    with pytest.raises(SystemExit) as end, one_line_errors():
        import_module(f"pipelines.{stage}").main(key, *map(Path, paths))
    said = capsys.readouterr().err
    assert end.value.code == 1
    assert re.fullmatch(
        r"turbopress: models/base/manifest\.json: there is no manifest, .*; make the artifact .*\n", said
    )
    assert files(repository) == before


def test_dimensions_that_turbomind_cannot_divide_are_refused(repository):
    shutil.rmtree(repository / "source")
    shutil.rmtree(repository / "models")
    write_source(repository / "source", intermediate_size=320)
    write_base(repository / "source", repository / "models" / "base")
    expected = "down_proj has 320 inputs a rank, the nearest legal are 256 and 384"
    refused(repository, "quantize", f"quantize.awq-w4: TurboMind would not load this: {expected}")


# --- text, reports, the store


def test_a_text_shorter_than_one_window_is_refused(repository):
    (repository / "text.txt").write_text(" ".join(WORDS[:15]))
    refused(repository, "corpus", r"text\.txt: holds 0 windows of 16 tokens, 4 asked for; give a longer text")


def test_a_conversation_with_a_role_that_is_none_is_refused(repository):
    params = yaml.safe_load((repository / "params.yaml").read_text())
    params["data"]["calibration"]["source"] = [{"source": "text.txt"}, {"source": "chat.jsonl"}]
    (repository / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (repository / "chat.jsonl").write_text('{"messages": [{"role": "robot", "content": "word7"}]}\n')
    refused(repository, "corpus", r"chat\.jsonl:1: messages\[0\] has the role 'robot'; known are system, user")


@pytest.mark.parametrize("stage", ["compare", "register"])
def test_a_damaged_report_is_refused(repository, stage):
    (repository / "reports" / "base.json").write_text('{"kind": "ba')
    refused(repository, stage, r"reports/base\.json: no report \(.*\); evaluate again")


@pytest.mark.parametrize("stage", ["check", "register"])
def test_an_old_mlflow_file_store_is_refused(repository, stage):
    (repository / "mlruns" / "0").mkdir(parents=True)
    (repository / "mlruns" / "0" / "meta.yaml").touch()
    refused(repository, stage, "mlruns: is an MLflow file store, which MLflow 3 does not open; move mlruns/ away")


# --- a full disk

# In a mount namespace of its own, so that nothing stays mounted: SIZE, what fills it, then the command.
ON_A_SMALL_DISK = """
small="$1"; prepare="$2"; shift 2
mkdir small && mount -t tmpfs -o size="$small" tmpfs small && eval "$prepare"
find small -printf '%p %s\\n' | sort > before
"$@"; status=$?
find small -printf '%p %s\\n' | sort > after
exit $status
"""
NAMESPACE = ["unshare", "--mount", "--map-root-user"]
FILL = "cat /dev/zero > small/filler 2> errors"


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """Skips where no disk can be mounted."""
    probe = [
        *NAMESPACE,
        "sh",
        "-c",
        'mount -t tmpfs -o size=64k tmpfs "$1"',
        "sh",
        str(tmp_path_factory.mktemp("probe")),
    ]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("a small disk cannot be mounted here: no unshare")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")


def run_on_a_small_disk(stage, repository, size, prepare=":", script=ON_A_SMALL_DISK, **environment):
    before = [*NAMESPACE, "sh", "-c", script, "sh", size, prepare]
    return run(stage, repository, before=before, **environment)


@pytest.mark.parametrize(
    ("stage", "size", "prepare", "place"),
    [
        ("fetch", "3m", ":", r"\.base.*/model-00003-of-00004\.safetensors"),  # the second layer
        ("quantize", "400k", ":", r"\.awq-w4.*/model-00004-of-00004\.safetensors"),
        ("quantize", "1060k", ":", "awq-w4"),  # the tokenizer
        ("corpus", "64k", FILL, r"\.calibration.*"),
        ("prune", "64k", FILL, r"\.shallow.*/model-0000\d-of-00003\.safetensors"),
        ("generate", "64k", FILL, r"\.?own-words.*"),
        ("distill", "64k", FILL, r"\.student.*/model-0000\d-of-00004\.safetensors"),
        ("evaluate", "64k", FILL, r"base\.json"),
        ("check", "64k", FILL, "sources"),
    ],
)
def test_a_full_disk_is_refused_and_what_was_begun_is_gone(
    namespace, repository, monkeypatch, stage, size, prepare, place
):
    arguments = [re.sub(r"^(out|data(?=/sources))", "small", argument) for argument in STAGES[stage]]
    monkeypatch.setitem(STAGES, stage, arguments)
    done = run_on_a_small_disk(stage, repository, size, prepare)
    assert_refused(done, rf"small/{place}: .*(the disk is full|No space left).*; free space.* and run again")
    assert (repository / "after").read_text() == (repository / "before").read_text()


def test_a_comparison_is_written_whole_or_not_at_all(namespace, repository, monkeypatch):
    monkeypatch.setitem(STAGES, "compare", ["small", "evaluations"])
    # Room for the table, not for the picture or the page that holds it.
    done = run_on_a_small_disk("compare", repository, "24k", "cp reports/base.json small")
    assert_refused(done, r"small/summary\.(png|html): the disk is full; free space and run again")
    assert (repository / "after").read_text() == (repository / "before").read_text()


def test_a_store_that_finds_no_room_is_not_begun(namespace, repository):
    done = run_on_a_small_disk("register", repository, "300k", DVC_ROOT=str(repository / "small"))
    assert_refused(done, r"mlflow\.db: the disk is full; free space there and run again")
    left = {line.split()[0] for line in (repository / "after").read_text().splitlines()}
    assert left == {"small", "small/mlflow.db.lock"}


TWICE = ON_A_SMALL_DISK.replace("exit $status", 'mount -o remount,size=20m small && "$@"\nexit $status')


def test_what_did_not_fit_into_the_store_is_no_version_and_fits_after_space_is_freed(namespace, repository, template):
    room = template.stat().st_size // 1024 + 200  # for MLflow's rows, not for the model
    done = run_on_a_small_disk(
        "register", repository, f"{room}k", f"cp {template} small", TWICE, DVC_ROOT=str(repository / "small")
    )
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert re.search(r"^turbopress: sqlite:.*: base: the disk is full; free space there and run again$", line)
    assert done.returncode == 1
    assert done.stdout == "demo v1 (base): registered, files uploaded, alias base\n"
    assert ".safetensors" not in (repository / "after").read_text()
