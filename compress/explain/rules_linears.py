"""What the measurement says of single linears: how they were rounded, what they read, what was clipped."""

from collections.abc import Iterator
from statistics import median

from compress.explain.finding import NEAR_LOSSLESS, About, Finding
from compress.explain.measured import Explanation, Linear
from compress.quantize.keep import CHOICES
from compress.quantize.sites import LINEARS

NO_BETTER = 0.97  # of plain rounding's error
ABOVE = 1.1  # of plain rounding's error
UNLIKE = 4.0  # times the median of the linears of this name
OUTLIER = 10.0  # a channel's mean magnitude over the median channel's
HARD = 0.05  # of a linear's weights outside their grids
NOTHING = 0.01  # of a group's range
FOLDED = 0.2  # from one: no rounding error is so large
TINY = 1e-12


def method(measured: Explanation, about: About) -> Iterator[Finding]:
    """What the rounding gained over plain rounding, and what would gain more."""
    ratios = [x.error / x.plain_error for x in measured.linears if x.plain_error]
    if not ratios or (measured.kl_nats or 1) < NEAR_LOSSLESS:
        return
    middle = median(ratios)
    gptq = f"round with error compensation, {about.key('rounding', 'method: gptq')}"
    if middle > NO_BETTER:
        seen, remedy = "nothing was gained over it", f"{gptq}, after a search of scales and clips"
    elif about.said("rounding", "method") == "nearest":
        seen, remedy = "scales and clips helped", gptq
    else:
        seen, remedy = (
            "the calibration worked",
            "learned rounding, more calibration windows, or 8 bits if memory allows",
        )
    yield Finding(f"The linears' output errors are {100 * middle:.0f} % of plain rounding's (median): {seen}.", remedy)


def above_plain(measured: Explanation, about: About) -> Iterator[Finding]:
    """Linears whose error on this text is greater than if nothing had been searched."""
    above = {x: x.error / x.plain_error for x in measured.linears if x.plain_error and x.error > ABOVE * x.plain_error}
    if not above or (measured.kl_nats or 1) < NEAR_LOSSLESS:
        return
    worst = max(above, key=lambda x: above[x])
    seen = (
        f"In {len(above)} of {len(measured.linears)} linears the error is above plain rounding's, most in "
        f"{worst.place} ({100 * above[worst]:.0f} %)."
    )
    if about.said("feedback"):
        yield Finding(f"{seen} Feedback means to: they make good what the layers before them did.")
    elif about.recipe is None:
        yield Finding(f"{seen} Either they make good what those before them did, or their calibration misled them.")
    else:
        yield Finding(
            f"{seen} They were fitted to inputs unlike those of this text.",
            "calibrate on more text, and on text like this (`data.calibration`)",
        )


def single_linears(measured: Explanation, about: About) -> Iterator[Finding]:
    """Linears that lose far more than those of the same name in other layers."""
    unlike = {x: x.error / max(_typical(measured, x), TINY) for x in measured.linears}
    for linear in sorted(unlike, key=lambda x: -unlike[x])[:3]:
        if unlike[linear] > UNLIKE:
            yield Finding(
                f"{linear.place} loses {100 * linear.error:.2g} % of its output's power, {unlike[linear]:.0f} times "
                "its likes in other layers.",
                keep(linear.place, measured, about),
            )


def keep(place: str, measured: Explanation, about: About) -> str:
    """How a linear stays in 16 bits, with those that engines take only together with it."""
    kept = next(linear for linear in measured.linears if linear.place == place)
    choice = min((choice for choice in CHOICES if kept.name in choice), key=len)
    partners = ", ".join(name for name in LINEARS if name in choice and name != kept.name)
    left = sum(x.error for x in measured.linears if x.layer == kept.layer and x.name not in choice)
    most = left + kept.error / 2  # so that the layer's other linears alone stay below it
    together = f", with {partners}" if partners else ""
    return f"keep {place} in 16 bits{together}: {about.key('keep', f'by: error, most: {most:.2g}')}"


def outliers(measured: Explanation, about: About) -> Iterator[Finding]:
    """Channels that are far greater than the rest, and whether their weights got a finer grid for it."""
    peaks = sorted((x for x in measured.inputs if x.peak > OUTLIER), key=lambda x: -x.peak)
    if not peaks:
        return
    told = ", ".join(f"{x.place} (channel {x.channels[0]}, {x.peak:,.0f} times the median)" for x in peaks[:3])
    seen = f"{len(peaks)} of {len(measured.inputs)} inputs have channels far above the rest: {told}."
    unscaled = [x for x in peaks if x.scaled < x.peak**0.25]
    if not unscaled:
        yield Finding(f"{seen} Their weights were scaled for it.")
    elif _was_searched(measured, about):
        yield Finding(f"{seen} The scale search left {len(unscaled)} of them about as they were.")
    else:
        yield Finding(
            f"{seen} The weights of {len(unscaled)} of them got no finer grid.",
            f"search scales, {about.key('scale', 'points: 20')}: they give such channels more of the grid",
        )


def _was_searched(measured: Explanation, about: About) -> bool:
    """Whether scales were searched: the recipe says so, or, of another's artifact, the folds."""
    if about.recipe is not None:
        return about.said("scale") is not None
    return any(abs(x.scaled - 1) > FOLDED for x in measured.inputs)


def clipping(measured: Explanation, about: About) -> Iterator[Finding]:
    """What shrinking the groups' ranges did."""
    known = [x for x in measured.linears if x.given_up is not None and x.outside is not None]
    if not known:
        return
    given, outside = median(x.given_up or 0 for x in known), median(x.outside or 0 for x in known)
    worst = max(known, key=lambda x: x.outside or 0)
    if (worst.outside or 0) > HARD:
        share = 100 * (worst.outside or 0)
        yield Finding(
            f"Clipping is hard: {share:.1f} % of the weights of {worst.place} lie outside their groups' grids.",
            f"clip less, {about.key('clip', 'least: 0.8')}",
        )
    elif given < NOTHING:
        yield Finding(
            "Nothing was clipped: the largest weight of each group sets the step of all.",
            f"search clips, {about.key('clip', 'points: 20, least: 0.6')}",
        )
    else:
        yield Finding(
            f"Clipping gave up {100 * given:.0f} % of the groups' ranges (median) for finer steps, and cut "
            f"{100 * outside:.1f} % of the weights short: as it should be."
        )


def _typical(measured: Explanation, linear: Linear) -> float:
    return median(x.error for x in measured.linears if x.name == linear.name)
