"""Which cards are planned for: of two unlike ones, those that CUDA would show to this process, in its order."""

import json
import os

import pytest
from lmdeploy_environment import executable
from test_memory import INTERNLM2_CHAT_1_8B

from serving.errors import ServingError
from serving.gpus import gpus

L4, H200 = "NVIDIA L4, 24576, 500, GPU-aa11", "NVIDIA H200, 143771, 771, GPU-ab22"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with these cards, of which CUDA_VISIBLE_DEVICES names some."""

    def make(*cards, shown=None):
        executable(tmp_path / "nvidia-smi", "\n".join(f"echo '{card}'" for card in cards))
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        if shown is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)

    return make


@pytest.mark.parametrize(
    ("shown", "names"),
    [
        (None, ["L4", "H200"]),
        ("1", ["H200"]),
        ("1,0", ["H200", "L4"]),
        (" 1 , 0", ["H200", "L4"]),
        ("GPU-ab22", ["H200"]),
        ("GPU-ab,GPU-aa11", ["H200", "L4"]),
        ("GPU-a", []),  # means both, and so none
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,7,0", ["H200"]),  # what means no card hides what stands behind it
        ("1,1", ["H200"]),
    ],
)
def test_the_cards_are_those_that_cuda_shows(machine, shown, names):
    machine(L4, H200, shown=shown)
    assert [card.name for card in gpus()] == [f"NVIDIA {name}" for name in names]


def test_a_part_of_a_card_is_refused_by_name(machine):
    machine(L4, H200, shown="MIG-1234")
    with pytest.raises(ServingError, match=r"^CUDA_VISIBLE_DEVICES: MIG-1234 is a part of a card, .*; name a card$"):
        gpus()


def test_a_card_whose_memory_is_not_told_is_one_line_unless_it_is_hidden(machine):
    machine(L4, "NVIDIA GB10, [N/A], [N/A], GPU-cc33")
    with pytest.raises(
        ServingError, match=r"^nvidia-smi: NVIDIA GB10 has \[N/A\] MiB of memory and uses \[N/A\]; mend"
    ):
        gpus()
    machine(L4, "NVIDIA GB10, [N/A], [N/A], GPU-cc33", shown="0")
    assert [card.name for card in gpus()] == ["NVIDIA L4"]


def test_a_driver_without_a_card_is_quoted(machine):
    machine("No devices were found")
    with pytest.raises(ServingError, match=r"^nvidia-smi: No devices were found; mend the driver$"):
        gpus()


def test_the_planner_plans_for_the_card_that_is_shown(machine, turbopress, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(INTERNLM2_CHAT_1_8B))
    machine(L4, H200, shown="1")
    told = json.loads(turbopress("memory", tmp_path / "config.json", "--json")[1])
    assert told["gpu_bytes"] == 143000 * 2**20
