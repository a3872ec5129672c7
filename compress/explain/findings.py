"""What the numbers say to somebody whose answers got worse: how much it is, why, and what to try.

Plain rules, each a function of the measurement; a rule speaks only where its numbers do. What is seen is measured; what
to try is what such numbers usually ask for, and an experiment says whether it was right.
"""

from collections.abc import Callable, Iterator, Sequence

from compress.explain import rules_linears, rules_model
from compress.explain.finding import About, Finding
from compress.explain.measured import Explanation

RULES: Sequence[Callable[[Explanation, About], Iterator[Finding]]] = (
    rules_model.overflow,
    rules_model.loss,
    rules_linears.method,
    rules_model.layers,
    rules_linears.single_linears,
    rules_linears.above_plain,
    rules_model.domains,
    rules_linears.outliers,
    rules_linears.clipping,
    rules_model.building_up,
    rules_model.outer,
    rules_model.massive,
)


def findings(measured: Explanation, about: About) -> list[Finding]:
    """Everything that the rules have to say, what decides first."""
    return [finding for rule in RULES for finding in rule(measured, about)]
