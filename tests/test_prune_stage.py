"""The stage `prune`: an artifact that says what went, a trace and its picture, and nothing where it refuses."""

import json

import pytest
from tiny_repository import make_base
from turbomind_check import MISSING, PROGRAM, ask, interpreter

from compress.checkpoint.checkpoint import Checkpoint
from compress.errors import CompressError
from pipelines.prune import main
from registry.manifest import verify

VARIANTS = {
    "by-kl": {"method": "depth", "remove_layers": 2, "score": "kl", "windows": 2},
    "narrow": {"method": "width", "intermediate_size": 0.67, "kv_heads": 1, "remove_layers": 1, "windows": 2},
    "two-ranks": {"method": "width", "intermediate_size": 256, "hidden_size": 0.5, "tensor_parallel": 2},
    "small": {"method": "mix", "target": {"latency": 0.8}, "windows": 2},
    "illegal": {"method": "width", "intermediate_size": 300},
    "undivided": {"method": "width", "intermediate_size": 256, "tensor_parallel": 3},
    "undivided-depth": {"method": "depth", "remove_layers": 1, "tensor_parallel": 3},
}
FILES = {"config.json", "manifest.json", "model.safetensors.index.json", "tokenizer.json", "README.md"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A base of three layers, calibration windows and the variants."""
    variants = {key: {"from": "base"} | said for key, said in VARIANTS.items()}
    return make_base(tmp_path_factory.mktemp("prune"), 6, sections={"prune": variants}, num_hidden_layers=3)


@pytest.fixture
def prune(repository, monkeypatch):
    """Runs the stage; returns the folders of the artifact and of the trace."""
    monkeypatch.chdir(repository)
    monkeypatch.setenv("TURBOPRESS_DEVICE", "cpu")

    def run(key):
        out, trace = repository / "models" / key, repository / "traces" / key
        if not out.exists():
            main(key, repository / "models" / "base", repository / "data", out, trace)
        return out, trace

    return run


@pytest.mark.parametrize(
    ("key", "removed", "sizes"),
    [
        ("by-kl", 2, {}),
        ("narrow", 1, {"intermediate_size": 256, "kv_heads": 1}),
        ("two-ranks", 0, {"intermediate_size": 256, "hidden_size": 128}),
    ],
)
def test_the_artifact_says_what_went(prune, key, removed, sizes):
    out, trace = prune(key)
    manifest, config = verify(out), Checkpoint(out).config
    assert {path.name for path in out.iterdir()} >= FILES
    assert manifest.kind == "pruned"
    assert manifest.recipe["sizes"] == sizes
    assert len(manifest.recipe["removed"]) == removed == 3 - config.num_layers
    assert {name: config.fields[name] for name in sizes if name != "kv_heads"} == {
        name: size for name, size in sizes.items() if name != "kv_heads"
    }
    assert (trace / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_the_trace_shows_every_round_of_scores(prune):
    rows = json.loads((prune("by-kl")[1] / "trace.json").read_text())
    assert [row["round"] for row in rows] == [0, 0, 0, 1, 1]
    assert sum(row["removed"] for row in rows) == 2
    for number in (0, 1):
        scores = {row["kl_nats"]: row["removed"] for row in rows if row["round"] == number}
        assert scores[min(scores)]


def test_the_trace_shows_what_was_made_good(prune):
    rows = [row for row in json.loads((prune("narrow")[1] / "trace.json").read_text()) if "plain_error" in row]
    assert {row["linear"] for row in rows} == {"self_attn.o_proj", "mlp.down_proj"}
    assert all(0 <= row["error"] <= row["plain_error"] for row in rows)
    assert any(row["error"] < 0.9 * row["plain_error"] for row in rows)


def test_the_trace_shows_all_candidates_of_a_target(prune):
    out, trace = prune("small")
    rows = [row for row in json.loads((trace / "trace.json").read_text()) if "way" in row]
    assert len(rows) >= 3
    assert all(row["share"] <= 0.8 for row in rows)
    best = min(rows, key=lambda row: row["kl_nats"])
    assert len(verify(out).recipe["removed"]) == best["remove_layers"]
    assert Checkpoint(out).config.fields["intermediate_size"] == best.get("intermediate_size", 384)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("illegal", r"^prune\.illegal\.intermediate_size: 300 of 384 is not legal .* the nearest legal are 256$"),
        ("undivided", r"^prune\.undivided\.intermediate_size: no size below 384 is legal for tensor_parallel 3"),
        (
            "undivided-depth",
            r"^prune\.undivided-depth: .* 4 heads with 2 kv heads do not divide by tp 3, legal are 1, 2",
        ),
    ],
)
def test_what_is_refused_leaves_nothing(prune, repository, key, message):
    with pytest.raises(CompressError, match=message):
        prune(key)
    assert not list(repository.glob(f"models/*{key}*"))
    assert not list(repository.glob("models/.candidate-*"))


@pytest.mark.skipif(not PROGRAM.is_dir(), reason=MISSING)
@pytest.mark.parametrize("key", ["by-kl", "narrow", "two-ranks", "small"])
def test_turbomind_loads_what_was_pruned(prune, key):
    out, _ = prune(key)
    verdict, config = ask(interpreter(), out, "90"), Checkpoint(out).config
    assert verdict["ok"], verdict
    assert (verdict["heads"], verdict["kv_heads"], verdict["head_dim"]) == (
        config.num_heads, config.num_kv_heads, config.head_dim,
    )  # fmt: skip
