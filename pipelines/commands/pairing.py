"""`compare A B`: two variants beside each other, and their difference with its interval."""

from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from compress.evaluate.intervals import Interval
from pipelines.commands.output import console, print_json
from pipelines.measured import read_local
from pipelines.pairs import differences
from pipelines.params import ParamsError


def print_pair(root: Path, pair: list[str], *, as_json: bool) -> None:
    """Prints how the second differs from the first."""
    if len(pair) != 2:
        raise ParamsError(f"compare {' '.join(pair)}: takes two variants, or none for the table of all")
    first, second = (read_local(root, name) for name in pair)
    found = differences(first, second)
    if as_json:
        print_json({name: {**asdict(d), "certain": d.is_certain} for name, d in found.items()})
        return
    table = Table(title="95 % intervals, bootstrap over the same documents for both", title_justify="left")
    for title in ("", first.name, second.name, f"{second.name} − {first.name}", "can be told from chance"):
        table.add_column(title, justify="left" if not title else "right")
    for name, d in found.items():
        values = (_plain(d.first), _plain(d.second), _signed(d.difference))
        table.add_row(name, *values, "yes" if d.is_certain else "no")
    console().print(table)


def _plain(interval: Interval) -> str:
    return f"{interval.value:.4g} ({interval.low:.4g} – {interval.high:.4g})"


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.4g} ({interval.low:+.4g} – {interval.high:+.4g})"
