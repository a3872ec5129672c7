"""Long work says where it stands, also to a file."""

import io
import re
import time

import pytest

from compress.progress import Progress, silent
from pipelines import progress


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.show(range(4), "layer")) == [0, 1, 2, 3]
    assert capsys.readouterr().err.splitlines() == [
        "layer 1 of 4, 1.0 s, 3.0 s left", "layer 2 of 4, 2.0 s, 2.0 s left",
        "layer 3 of 4, 3.0 s, 1.0 s left", "layer 4 of 4, 4.0 s, 0.0 s left",
    ]  # fmt: skip


def test_a_rate_is_told_beside_the_time_left(capsys, monkeypatch):
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.showing(3000, "tokens")(range(1), "step")) == [0]
    assert capsys.readouterr().err == "step 1 of 1, 2.0 s, 0.0 s left, 1,500 tokens/s\n"


@pytest.mark.parametrize(("count", "lines"), [(0, 0), (1, 1), (1000, 10), (1005, 11)])
def test_progress_of_long_work_is_about_ten_lines_and_the_last_is_the_end(capsys, count, lines):
    assert len(list(progress.show(range(count), "step"))) == count
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    assert not said or said[-1].startswith(f"step {count} of {count}, ")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    """A stderr that is wide enough for all columns; it keeps what is written."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(progress.sys, "stderr", Terminal())
    return progress.sys.stderr


def test_progress_on_a_terminal_is_a_bar_that_hands_on_every_item(monkeypatch):
    stderr = terminal(monkeypatch)
    assert list(progress.show(range(3), "layer")) == [0, 1, 2]
    assert "layer" in stderr.getvalue()
    assert "3/3" in stderr.getvalue()
    assert "/s" not in stderr.getvalue()


def test_a_bar_tells_the_rate_in_a_column_of_its_own(monkeypatch):
    stderr = terminal(monkeypatch)
    for _ in progress.showing(3000, "tokens")(range(5), "step"):
        time.sleep(0.02)  # a rate is known once time has passed
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", stderr.getvalue())
    assert re.search(r"step .* 5/5 .* left \S+ [1-9][\d,]* tokens/s", shown), shown


@pytest.mark.parametrize("way", [silent, progress.show])
def test_every_way_of_progress_hands_the_items_on_as_they_are_asked_for(way):
    assert isinstance(way, Progress)
    asked = way([1, 2, 3], "step")
    assert next(asked) == 1
    assert list(asked) == [2, 3]
