"""`compare A B`: how two variants differ on the same text, and whether that can be told from chance."""

from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from compress.evaluate.intervals import METRICS, Interval, bootstrap
from pipelines.commands.output import console, print_json
from pipelines.measured import Measured, read_local
from pipelines.params import ParamsError


@dataclass(frozen=True)
class Difference:
    """One metric of both, and the second less the first on the same documents."""

    first: Interval
    second: Interval
    difference: Interval

    @property
    def is_certain(self) -> bool:
        """Whether the 95 % interval of the difference leaves out 0."""
        return not self.difference.low <= 0 <= self.difference.high


def differences(first: Measured, second: Measured) -> dict[str, Difference]:
    """Every metric of two variants that were measured on the same tokens."""
    if not first.is_on_same_text(second):
        pair = f"{first.name}, {second.name}"
        raise ParamsError(f"{pair}: were not measured on the same text; run `dvc repro` to evaluate both on one")
    return {
        name: Difference(
            bootstrap(statistic, first.sums),
            bootstrap(statistic, second.sums),
            bootstrap(lambda a, b, of=statistic: of(b) - of(a), first.sums, second.sums),
        )
        for name, statistic in METRICS.items()
    }


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
