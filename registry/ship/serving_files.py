"""What a release carries for its server: serve.yaml, a systemd unit and a compose file for `lmdeploy serve api_server`.

They hold no path of a machine: where the releases lie is TURBOPRESS_MODELS, /srv/models unless somebody says
otherwise, so a release is the same wherever it is sent. The server is started on the resolved path, because the link
moves under a running one, and is up when /health answers.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import JsonValue

from registry.errors import RegistryError
from registry.ship.release import SERVING

PORT = 23333
STARTS_WITHIN_S = 600  # loading tens of gigabytes from a cold disk

UNIT = """\
# Copy to /etc/systemd/system/, then: systemctl enable --now turbopress. TURBOPRESS_MODELS is where releases lie.
[Unit]
Description={name} on LMDeploy
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
Environment=TURBOPRESS_MODELS=/srv/models
EnvironmentFile=-/etc/default/turbopress
ExecStart=/bin/sh -c 'exec {command}'
# The unit is started when the server answers, so `systemctl restart` waits for it and fails if it does not.
ExecStartPost=/bin/sh -c 'for i in $$(seq {starts}); do {probe} && exit 0; sleep 1; done; exit 1'
TimeoutStartSec={starts_and_a_bit}
Restart=on-failure
RestartSec=5

[Install]
WantedBy=multi-user.target
"""


def serving_files(name: str, profile: Mapping[str, JsonValue], backend: str) -> dict[str, bytes]:
    """The three files, by their path in the release; `profile` holds options of the engine that `backend` names."""
    flags = ["--backend", backend, *arguments(profile)]
    for word in (name, *flags):
        if shlex.quote(word) != word:  # two of the files hold a shell's command within another's quotes
            raise RegistryError(f"profile: {word!r} holds what a shell reads otherwise; write letters, digits, -_./:=")
    serve = {"model_name": name, "server_port": PORT, "backend": backend, "engine": dict(profile)}
    files = {
        "serve.yaml": _yaml(serve),
        "turbopress.service": _unit(name, flags),
        "compose.yaml": _compose(name, flags),
    }
    return {f"{SERVING}/{file}": text.encode() for file, text in files.items()}


def arguments(profile: Mapping[str, JsonValue]) -> list[str]:
    """LMDeploy's flags: an option that is on is a flag by itself, what is null or off is left to LMDeploy."""
    found = []
    for option, value in profile.items():
        flag = "--" + option.replace("_", "-")
        if value is True:
            found.append(flag)
        elif isinstance(value, str | int | float) and value is not False:
            found += [flag, str(value)]
        elif value not in (None, False):
            raise RegistryError(f"profile: {option}: {value!r} is no value of a flag; give text, a number, or true")
    return found


def read_profile(path: Path) -> dict[str, JsonValue]:
    """A YAML file with LMDeploy's engine options, alone or as the `engine` of a serve.yaml."""
    try:
        said = yaml.safe_load(path.read_text("utf8"))
    except (OSError, yaml.YAMLError) as error:
        raise RegistryError(f"{path}: no profile ({' '.join(str(error).split())}); give a YAML file") from None
    said = said.get("engine", said) if isinstance(said, dict) else said
    if not isinstance(said, dict):
        raise RegistryError(f"{path}: no profile; write options as `cache_max_entry_count: 0.5`, a line each")
    arguments(said)
    return said


def _command(models: str, host: str, name: str, flags: list[str]) -> str:
    """A command for sh, whose own expansion finds the release."""
    said = ["--model-name", name, "--server-name", host, "--server-port", str(PORT), *flags]
    return f'lmdeploy serve api_server "$(readlink -f "{models}/current")" {" ".join(said)}'


def _probe() -> str:
    return f"curl -fsS -o /dev/null http://127.0.0.1:{PORT}/health"


def _unit(name: str, flags: list[str]) -> str:
    command = _command("$TURBOPRESS_MODELS", "127.0.0.1", name, flags)
    # systemd expands $ and % itself unless they are doubled.
    escaped = command.replace("%", "%%").replace("$", "$$")
    starts = {"starts": STARTS_WITHIN_S, "starts_and_a_bit": STARTS_WITHIN_S + 60}
    return UNIT.format(name=name, command=escaped, probe=_probe(), **starts)


def _compose(name: str, flags: list[str]) -> str:
    gpu = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    service = {
        "image": "${LMDEPLOY_IMAGE:?name an image with LMDeploy 0.18}",
        # $$ is a single $ to the shell in the container.
        "command": ["sh", "-c", "exec " + _command("/models", "0.0.0.0", name, flags).replace("$", "$$")],  # noqa: S104
        "volumes": ["${TURBOPRESS_MODELS:-/srv/models}:/models:ro"],
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "ipc": "host",
        "restart": "unless-stopped",
        "deploy": {"resources": {"reservations": {"devices": [gpu]}}},
        "healthcheck": {
            "test": ["CMD-SHELL", _probe()],
            "interval": "5s",
            "timeout": "5s",
            "retries": 3,
            "start_period": f"{STARTS_WITHIN_S}s",
        },
    }
    return _yaml({"services": {"lmdeploy": service}})


def _yaml(value: Mapping[str, object]) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
    return text
