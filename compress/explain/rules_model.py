"""What the measurement says of the model as a whole: how much was lost, where, and on which text."""

from collections.abc import Iterator, Sequence
from statistics import median

from compress.explain.finding import LOSSES, NEAR_LOSSLESS, STANDS_OUT, About, Finding
from compress.explain.measured import Explanation, Layer, Overflow
from compress.explain.rules_linears import keep

BUILDS_UP, MADE_GOOD = 1.25, 0.9  # the whole loss over the sum of the layers'
WORSE_TEXT = 1.5  # times the other domains' median
OUTER = 0.05  # of the loss
MASSIVE = 100.0  # an activation over the median


def overflow(measured: Explanation, about: About) -> Iterator[Finding]:
    """Activations that float16 cannot hold, which no quality of rounding would mend."""
    if measured.overflow is not None:
        yield Finding(
            f"{_reached(measured.overflow)} in {about.variant}; an engine in float16 answers with noise from there on.",
            f"serve in bfloat16: in {about.parent}, {_reached(measured.parent_overflow)}"
            if measured.parent_overflow
            else f"quantize again: {about.parent} stays within float16 on this text, so a stored scale is broken there",
        )


def _reached(found: Overflow) -> str:
    much = "NaN or infinity" if found.largest == float("inf") else f"{found.largest:,.0f} (float16 ends at 65,504)"
    return f"{found.place} is the first to reach {much}"


def loss(measured: Explanation, about: About) -> Iterator[Finding]:
    """How much it is."""
    place = f"on {measured.windows} windows of {measured.length} tokens of {about.text}"
    if measured.kl_nats is None:
        yield Finding(f"{about.variant} gives no numbers {place}, so its divergence cannot be measured.")
        return
    size = next(word for limit, word in LOSSES if measured.kl_nats < limit)
    yield Finding(
        f"{about.variant} diverges {size} from {about.parent}: {measured.kl_nats:.4f} nats a token, {place}.",
        "look for the trouble elsewhere first: prompt, chat template, sampling, the base itself"
        if measured.kl_nats < NEAR_LOSSLESS
        else None,
    )


def layers(measured: Explanation, about: About) -> Iterator[Finding]:
    """Whether some layers are to blame, and what keeping them would cost."""
    ranked = sorted((layer for layer in measured.layers if _share(measured, layer)), key=lambda x: -_share(measured, x))
    if not ranked or (measured.kl_nats or 0) < NEAR_LOSSLESS:
        return
    even = 1 / len(measured.layers)
    out = [layer for layer in ranked if _share(measured, layer) > STANDS_OUT * even]
    told = ", ".join(f"layer {x.layer} {100 * _share(measured, x):.0f} %" for x in (out or ranked[:3])[:8])
    if out:
        yield Finding(
            f"Some layers stand out. Alone: {told} of the loss (an even share is {100 * even:.0f} %).",
            _kept(about, out[:8]),
        )
    else:
        yield Finding(
            f"No layer stands out. The worst alone: {told} of the loss (an even share is {100 * even:.0f} %). It is "
            "the rounding of all layers, not a place.",
            f"{_kept(about, ranked[:1])}; better rounding of all layers comes first",
        )


def _kept(about: About, kept: Sequence[Layer]) -> str:
    numbers = ", ".join(str(n) for n in sorted(layer.layer for layer in kept))
    gain, cost = sum(layer.kl_nats or 0 for layer in kept), ""
    if about.layer_extra_bytes is not None:
        extra = len(kept) * about.layer_extra_bytes
        room = about.key("keep", f"by: size, most_megabytes: {extra / 1e6:.1f}")
        cost = f" for {extra / 1e6:,.1f} MB more (+{100 * extra / about.size_bytes:.0f} %)"
        cost += f"; {room} gives as much to the linears that lose most for their size"
    plural = "s" if len(kept) > 1 else ""
    return f"layer{plural} {numbers} in 16 bits would lose about {gain:.4f} nats less{cost}"


def building_up(measured: Explanation, about: About) -> Iterator[Finding]:
    """Whether layers make each other's errors worse; known only where all were measured alone."""
    alone = [layer.kl_nats for layer in measured.layers if layer.kl_nats is not None]
    if not measured.kl_nats or len(alone) < len(measured.layers) or not sum(alone):
        return
    ratio = measured.kl_nats / sum(alone)
    if ratio > BUILDS_UP:
        yield Finding(
            f"The loss is {ratio:.1f} times the sum of what its layers lose alone: each worsens the errors before it.",
            f"calibrate each layer on what the rounded ones before it give ({about.key('feedback')})",
        )
    elif ratio < MADE_GOOD:
        yield Finding(
            f"The loss is {ratio:.2f} of the sum of its layers': later layers make good what earlier ones did."
        )


def domains(measured: Explanation, about: About) -> Iterator[Finding]:
    """Whether one kind of text lost more than the others."""
    known = {name: kl for name, kl in measured.kl_by_domain.items() if kl is not None}
    if len(known) < 2 or (measured.kl_nats or 0) < NEAR_LOSSLESS:
        return
    worst = max(known, key=lambda name: known[name])
    others = median(kl for name, kl in known.items() if name != worst)
    if known[worst] > WORSE_TEXT * others:
        yield Finding(
            f"Text of the kind {worst!r} lost {known[worst]:.4f} nats a token, the others {others:.4f} (median).",
            f"put more {worst!r} into the calibration (`data.calibration.source` takes a mix by weight)",
        )


def outer(measured: Explanation, about: About) -> Iterator[Finding]:
    """What lies outside of the decoder layers."""
    if measured.kl_nats and (measured.outer_kl_nats or 0) > OUTER * measured.kl_nats:
        share = 100 * (measured.outer_kl_nats or 0) / measured.kl_nats
        yield Finding(f"Embeddings, last norm and head alone make {share:.0f} % of the loss.", "keep them in 16 bits")


def massive(measured: Explanation, about: About) -> Iterator[Finding]:
    """The few enormous activations that large models have."""
    first = next((layer for layer in measured.layers if layer.massive > MASSIVE), None)
    if first is not None:
        writer = f"layers.{first.layer}.mlp.down_proj"
        is_bad = _share(measured, first) > STANDS_OUT / len(measured.layers)
        yield Finding(
            f"Behind layer {first.layer}, channel {first.channel} of the residual stream reaches {first.massive:,.0f} "
            f"times the median, at position {first.position} of a window. Large models have such activations, and "
            f"attention rests on them: an error in {writer}, which writes them, reaches all later layers.",
            f"{keep(writer, measured, about)}; its layer is among the worst" if is_bad else None,
        )


def _share(measured: Explanation, layer: Layer) -> float:
    return measured.share(layer) or 0.0
