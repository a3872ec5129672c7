"""What a release carries for its server is what systemd, compose and a shell take, and names no place of a machine."""

import os
import shlex
import shutil
import subprocess

import pytest
import yaml

from registry.errors import RegistryError
from registry.ship.serving_files import arguments, read_profile, serving_files

PROFILE = {
    "model_format": "awq",
    "cache_max_entry_count": 0.4,
    "tp": 2,
    "enable_prefix_caching": True,
    "session_len": None,
}


def files(profile=None, backend="turbomind"):
    made = serving_files("demo", PROFILE if profile is None else profile, backend)
    return {name.removeprefix("serving/"): content.decode() for name, content in made.items()}


def said_by(command, tmp_path, **environment):
    """What lmdeploy is given when a shell runs the command: a program that prints its arguments stands for it."""
    (tmp_path / "lmdeploy").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "lmdeploy").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | environment
    return subprocess.run(
        ["sh", "-c", command], env=env, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def models(tmp_path):
    (tmp_path / "models" / "releases" / "abc").mkdir(parents=True)
    (tmp_path / "models" / "current").symlink_to("releases/abc")
    return tmp_path / "models"


def test_options_become_lmdeploy_s_flags():
    flags = ["--model-format", "awq", "--cache-max-entry-count", "0.4", "--tp", "2", "--enable-prefix-caching"]
    assert arguments(PROFILE) == flags
    assert arguments({}) == []
    with pytest.raises(RegistryError, match=r"profile: tp: \[2\] is no value of a flag"):
        arguments({"tp": [2]})


def test_serve_yaml_says_the_profile_and_is_read_back(tmp_path):
    (tmp_path / "serve.yaml").write_text(files()["serve.yaml"])
    assert yaml.safe_load(files()["serve.yaml"])["model_name"] == "demo"
    assert read_profile(tmp_path / "serve.yaml") == PROFILE
    (tmp_path / "plain.yaml").write_text("tp: 4\n")
    assert read_profile(tmp_path / "plain.yaml") == {"tp": 4}
    for text in ("- a\n", "a: [", "tp: {x: 1}"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(RegistryError, match="profile"):
            read_profile(tmp_path / "bad.yaml")
    with pytest.raises(RegistryError, match=r"gone.yaml: no profile"):
        read_profile(tmp_path / "gone.yaml")


def test_every_file_names_the_engine_that_runs_the_model():
    """TurboMind has no LLaVA: the PyTorch engine must be asked for."""
    made = files(backend="pytorch")
    assert yaml.safe_load(made["serve.yaml"])["backend"] == "pytorch"
    assert all("--backend pytorch" in made[name] for name in ("turbopress.service", "compose.yaml"))
    assert not any("turbomind" in text for text in made.values())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path):
    (tmp_path / "turbopress.service").write_text(files()["turbopress.service"])
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "turbopress.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    ours = [line for line in said.stderr.splitlines() if "turbopress.service" in line]
    assert ours == []


def test_the_unit_starts_lmdeploy_on_the_resolved_release(tmp_path):
    (line,) = [x for x in files()["turbopress.service"].splitlines() if x.startswith("ExecStart=")]
    shell, option, command = shlex.split(line.removeprefix("ExecStart="))
    assert (shell, option) == ("/bin/sh", "-c")
    command = command.replace("$$", "$")  # as systemd does
    place = models(tmp_path)
    said = said_by(command, tmp_path, TURBOPRESS_MODELS=str(place))
    assert said[:3] == ["serve", "api_server", str(place / "releases" / "abc")]
    assert said[3:] == [
        "--model-name", "demo", "--server-name", "127.0.0.1", "--server-port", "23333", "--backend", "turbomind",
        *arguments(PROFILE),
    ]  # fmt: skip


def test_the_compose_file_starts_lmdeploy_on_the_resolved_release_and_asks_for_its_health(tmp_path):
    service = yaml.safe_load(files()["compose.yaml"])["services"]["lmdeploy"]
    _, _, command = service["command"]
    place = models(tmp_path)
    said = said_by(command.replace("$$", "$").replace("/models/current", f"{place}/current"), tmp_path)
    assert said[:3] == ["serve", "api_server", str(place / "releases" / "abc")]
    assert "0.0.0.0" in said
    assert service["volumes"] == ["${TURBOPRESS_MODELS:-/srv/models}:/models:ro"]
    assert "/health" in service["healthcheck"]["test"][1]


@pytest.mark.parametrize("value", ["it's", "$(reboot)", "a b", 'say "x"', "a\nb", "100%;", "`id`"])
def test_a_profile_cannot_say_more_to_a_shell_than_a_word(value):
    with pytest.raises(RegistryError, match=r"holds what a shell reads otherwise; write letters"):
        files({"chat_template": value})
    assert (
        "--chat-template /srv/chat_template.json" in files({"chat_template": "/srv/chat_template.json"})["compose.yaml"]
    )


def test_no_file_names_a_place_of_this_machine(tmp_path):
    assert str(tmp_path) not in "".join(files().values())
    assert serving_files("demo", PROFILE, "turbomind") == serving_files("demo", dict(PROFILE), "turbomind")
