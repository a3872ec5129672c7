"""`export`, `rollback`, `releases` and `gc` as they are typed, and a switch that waits for a real server's health."""

import json
import os
import signal
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from fake_artifacts import SHAPE, enter, fake_artifact
from ship_servers import free_port
from tiny_repository import write_params

from registry.manifest import read, seal, verify
from registry.ship.place import open_place
from registry.ship.upkeep import releases

pytest_plugins = ["fake_stores"]
SERVER = Path(__file__).parent / "release_server.py"


@pytest.fixture
def here(root, artifact, monkeypatch):
    """A repository with a registered artifact."""
    write_params(root, serve={"quant_policy": 8})
    monkeypatch.chdir(root)
    enter(root)
    return root


def artifact_that_is(folder, well):
    fake_artifact(folder, folder.name)
    said = read(folder).model_dump()
    (folder / "manifest.json").unlink()
    (folder / "config.json").write_text(json.dumps(SHAPE | {"well": well}))
    seal(folder, **{k: said[k] for k in ("kind", "recipe", "parents", "data", "seed", "origin", "versions")})
    return folder


def test_a_registered_version_is_exported_by_its_alias_with_what_a_server_needs(turbopress, here, tmp_path):
    status, out, err = turbopress("export", "demo@awq-w4", "--to", tmp_path / "server")
    assert status == 0
    assert "current points at it" in out
    assert "sent " in err
    current = tmp_path / "server" / "current"
    assert verify(current) == verify(here / "models" / "awq-w4")
    assert {p.name for p in (current / "serving").iterdir()} == {"serve.yaml", "turbopress.service", "compose.yaml"}
    (listed,) = json.loads(turbopress("releases", "--to", tmp_path / "server", "--json")[1])
    assert (listed["of"], listed["current"]) == ("demo/1 (awq-w4)", True)
    assert listed["artifact"] == verify(current).digest


def test_a_dry_run_prints_what_would_go_and_sends_nothing(turbopress, here, tmp_path):
    status, out, _ = turbopress("export", "demo@awq-w4", "--to", tmp_path / "server", "--dry-run")
    assert status == 0
    assert "would send             700  model.safetensors" in out
    assert out.splitlines()[-1].endswith("and would become current")
    assert not (tmp_path / "server").exists() or not any((tmp_path / "server").iterdir())
    turbopress("export", "demo@awq-w4", "--to", tmp_path / "server")
    assert "nothing would be done" in turbopress("export", "demo@awq-w4", "--to", tmp_path / "server", "--dry-run")[1]
    said = json.loads(turbopress("export", "demo@awq-w4", "--to", tmp_path / "server", "--dry-run", "--json")[1])
    assert (said["send_bytes"], said["current"]) == (0, True)


def test_a_folder_is_exported_rolled_back_listed_and_collected(turbopress, here, tmp_path):
    (tmp_path / "profile.yaml").write_text("cache_max_entry_count: 0.4\n")
    fake_artifact(tmp_path / "other", "other")
    to = tmp_path / "server"
    first = json.loads(turbopress("export", "models/awq-w4", "--to", to, "--json")[1])
    second = json.loads(
        turbopress("export", tmp_path / "other", "--to", to, "--profile", tmp_path / "profile.yaml", "--json")[1]
    )
    assert second["before"] == first["digest"]
    assert "cache_max_entry_count: 0.4" in (to / "current" / "serving" / "serve.yaml").read_text()
    status, out, _ = turbopress("rollback", "--to", to)
    assert (status, first["digest"] in out) == (0, True)
    rows = turbopress("releases", "--to", to, "--verify")[1].splitlines()
    assert [row.split()[-1] == "current" for row in rows] == [False, True]
    assert turbopress("gc", "--to", to, "--keep", 1, "--dry-run")[1].startswith(f"{to}: would remove releases/")
    assert turbopress("gc", "--to", to, "--keep", 1)[1] == f"{to}: removed releases/{second['digest']}\n"
    assert turbopress("gc", "--to", to)[1] == f"{to}: removed nothing\n"


def told(folder):
    return yaml.safe_load((folder / "current" / "serving" / "serve.yaml").read_text())


def artifact_of(folder, **changes):
    """An artifact whose config.json says something else too."""
    fake_artifact(folder, folder.name)
    said = read(folder).model_dump()
    (folder / "manifest.json").unlink()
    (folder / "config.json").write_text(json.dumps(SHAPE | changes))
    seal(folder, **{k: said[k] for k in ("kind", "recipe", "parents", "data", "seed", "origin", "versions")})
    return folder


def test_a_release_is_told_what_params_yaml_says_to_serve_and_what_the_artifact_is(turbopress, here, tmp_path):
    awq = artifact_of(tmp_path / "awq", quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128})
    (tmp_path / "profile.yaml").write_text("tp: 2\n")
    assert turbopress("export", awq, "--to", tmp_path / "to", "--profile", tmp_path / "profile.yaml")[0] == 0
    engine = told(tmp_path / "to")["engine"]
    assert (engine["quant_policy"], engine["tp"], engine["model_format"], engine["session_len"]) == (8, 2, "awq", 256)
    assert told(tmp_path / "to")["backend"] == "turbomind"


def test_a_model_that_turbomind_does_not_run_is_exported_for_the_other_engine(turbopress, here, tmp_path):
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "patch_size": 14}
    llava = {"architectures": ["LlavaForConditionalGeneration"], "text_config": SHAPE, "vision_config": vision}
    assert turbopress("export", artifact_of(tmp_path / "llava", **llava), "--to", tmp_path / "to")[0] == 0
    assert told(tmp_path / "to")["backend"] == "pytorch"
    assert "--backend pytorch" in (tmp_path / "to" / "current" / "serving" / "turbopress.service").read_text()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("quant_policy: 4", "quant_policy 4 ends the engine with heads of 64; use 0 or 8"),
        ("tp: 3", "tp 3 does not divide 4 heads with 2 kv heads; legal are 1, 2, 4"),
        ("session_len: 300", "session_len 300 is longer than the model's 256 positions"),
        ("model_format: awq", "model_format is awq, but the artifact is hf; leave it out"),
        ("cache: 0.4", "profile.yaml: cache is no option of the engine; choose model_format, cache_max_entry_count"),
        ("tp: two", "profile.yaml: tp: input should be a valid integer, found 'two'"),
    ],
)
def test_a_profile_that_would_end_the_server_is_refused_before_anything_is_sent(
    turbopress, here, tmp_path, said, words
):
    (tmp_path / "profile.yaml").write_text(said + "\n")
    status, out, err = turbopress(
        "export", "demo@awq-w4", "--to", tmp_path / "server", "--profile", tmp_path / "profile.yaml"
    )
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert words in err
    assert open_place(str(tmp_path / "server")).digests() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "demo@champion"], "demo@champion: no such version; aliases: @awq-w4"),
        (["export", "demo@awq-w4", "--restart", "true"], "--restart: needs --health too"),
        (["rollback"], "nothing was current before"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(turbopress, here, tmp_path, arguments, words):
    status, out, err = turbopress(*arguments, "--to", tmp_path / "server")
    assert (status, out) == (1, "")
    assert words in err
    assert len([line for line in err.splitlines() if not line.startswith("sent ")]) == 1
    assert open_place(str(tmp_path / "server")).digests() == []


# --- health


@pytest.fixture
def server(tmp_path):
    """A restart command for a real server of the releases at `models`, its address, and who ends it."""
    models, port, pid = tmp_path / "models", free_port(), tmp_path / "pid"
    script = tmp_path / "restart"
    script.write_text(f"""#!/bin/sh
[ -f {pid} ] && kill $(cat {pid}) && while kill -0 $(cat {pid}) 2>/dev/null; do sleep 0.02; done
setsid {sys.executable} {SERVER} {models} {port} >/dev/null 2>&1 &
echo $! > {pid}
""")
    script.chmod(0o755)
    yield models, script, f"http://127.0.0.1:{port}/health"
    if pid.exists():
        os.kill(int(pid.read_text()), signal.SIGTERM)


def served(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def test_a_switch_waits_until_the_server_is_well(turbopress, here, tmp_path, server):
    models, restart, health = server
    good = artifact_that_is(tmp_path / "good", well=True)
    status, out, err = turbopress(
        "export", good, "--to", models, "--restart", restart, "--health", health, "--wait", 60, "--json"
    )
    assert status == 0, err
    assert served(health) == json.loads(out)["digest"]


def test_a_switch_to_a_release_that_does_not_run_is_taken_back(turbopress, here, tmp_path, server):
    models, restart, health = server
    good, ill = artifact_that_is(tmp_path / "good", well=True), artifact_that_is(tmp_path / "ill", well=False)
    safely = ("--to", models, "--restart", restart, "--health", health, "--wait", 30)
    first = json.loads(turbopress("export", good, *safely, "--json")[1])["digest"]
    status, out, err = turbopress("export", ill, *safely[:-1], 4)
    assert (status, out) == (1, "")
    (line,) = [x for x in err.splitlines() if not x.startswith("sent ")]
    assert "did not answer within 4 s (status 503); went back to " in line
    assert line.endswith(f"{first[:12]}, which answers")
    assert open_place(str(models)).pointer().digest == served(health) == first
    assert len(releases(open_place(str(models)))) == 2
    status, _, err = turbopress("rollback", "--release", releases(open_place(str(models)))[0].digest, *safely[:-1], 4)
    assert status == 1
    assert served(health) == first


def test_a_restart_that_fails_takes_the_switch_back(turbopress, here, tmp_path, server):
    models, _, health = server
    good, other = artifact_that_is(tmp_path / "good", well=True), artifact_that_is(tmp_path / "other", well=True)
    first = json.loads(turbopress("export", good, "--to", models, "--json")[1])["digest"]
    broken = ("--restart", "sh -c 'echo no such unit >&2; exit 5'", "--health", health, "--wait", 5)
    status, _, err = turbopress("export", other, "--to", models, *broken)
    assert status == 1
    assert "exit status 5: no such unit; went back to" in err
    assert open_place(str(models)).pointer().digest == first


def test_a_first_release_that_does_not_run_has_none_to_go_back_to(turbopress, here, tmp_path, server):
    models, restart, health = server
    ill = artifact_that_is(tmp_path / "ill", well=False)
    status, _, err = turbopress("export", ill, "--to", models, "--restart", restart, "--health", health, "--wait", 3)
    assert status == 1
    assert "there is no earlier release to go back to" in err


def test_what_is_current_already_restarts_nothing(turbopress, here, tmp_path, server):
    models, _, health = server
    turbopress("export", "models/awq-w4", "--to", models)
    done = turbopress("export", "models/awq-w4", "--to", models, "--restart", "false", "--health", health, "--wait", 1)
    assert done[0] == 0
