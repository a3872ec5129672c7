"""How two variants differ on the same documents, and whether that can be told from chance."""

from dataclasses import dataclass

from compress.evaluate.intervals import METRICS, Interval, bootstrap
from pipelines.measured import Measured
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
