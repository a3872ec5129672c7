"""The findings name what was done to a variant, and what to try against it."""

import re
from dataclasses import replace

import pytest
import yaml
from pydantic import TypeAdapter

from compress.explain.finding import About
from compress.explain.findings import findings
from compress.explain.measured import Explanation, Input, Layer, Linear, Overflow
from compress.quantize.schemes import KeepByError, KeepBySize
from pipelines.variants import QuantizeVariant

LINEARS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
RECIPE = {"scale": {"points": 20}, "clip": {"points": 20}, "feedback": None, "rounding": {"method": "gptq"}}
ABOUT = About("awq-w4", "base", "evaluation", RECIPE, 10_000_000, 1_000_000)


def even(layers=10, kl=0.08):
    """A variant whose layers and linears all lost about the same."""
    return Explanation(
        kl_nats=kl,
        kl_by_domain={"law": kl, "code": kl},
        outer_kl_nats=0.0,
        layers=tuple(Layer(n, 0.001, 0.001 * (n + 1), kl / layers, 20.0, 3, 0) for n in range(layers)),
        linears=tuple(Linear(n, name, 0.006, 0.01, 0.01, 0.07) for n in range(layers) for name in LINEARS),
        inputs=tuple(Input(n, name, 2.0, 4.0, (7, 8, 9), 1.1) for n in range(layers) for name in LINEARS[:2]),
        overflow=None,
        parent_overflow=None,
        windows=16,
        length=256,
    )


def changed(measured, field, number, **changes):
    """The same with one of the layers, linears or inputs changed."""
    things = list(getattr(measured, field))
    things[number] = replace(things[number], **changes)
    return replace(measured, **{field: tuple(things)})


def told(measured, about=ABOUT):
    return "\n".join(f"{finding.seen} -> {finding.remedy}" for finding in findings(measured, about))


def written(text, by):
    """The first `keep` of a kind that is advised, as params.yaml takes it."""
    said = re.search(rf"`quantize\.awq-w4\.keep: (\{{by: {by}.*?\}})`", text)[1]
    return TypeAdapter(QuantizeVariant).validate_python({"from": "base", "keep": yaml.safe_load(said)})


def test_an_even_loss_is_blamed_on_the_rounding_and_on_no_layer():
    text = told(even())
    assert (
        "awq-w4 diverges noticeably from base: 0.0800 nats a token, on 16 windows of 256 tokens of evaluation" in text
    )
    assert "No layer stands out" in text
    assert "60 % of plain rounding's (median): the calibration worked. -> learned rounding" in text


def test_a_layer_above_the_rest_is_named_with_gain_and_cost():
    text = told(changed(even(), "layers", 4, kl_nats=0.03))
    assert "Some layers stand out. Alone: layer 4 38 % of the loss (an even share is 10 %)." in text
    assert "layer 4 in 16 bits would lose about 0.0300 nats less for 1.0 MB more (+10 %)" in text
    assert written(text, "size").keep == KeepBySize(by="size", most_megabytes=1.0)
    assert "No layer stands out" not in text


def test_a_small_loss_sends_the_user_elsewhere():
    text = told(even(kl=0.004))
    assert "diverges next to nothing" in text
    assert "look for the trouble elsewhere first" in text
    assert "16 bits" not in text


def test_a_linear_unlike_its_likes_is_named():
    text = told(changed(even(), "linears", 6, error=0.06))
    assert "layers.1.mlp.up_proj loses 6 % of its output's power, 10 times its likes in other layers. -> keep" in text
    assert "layers.1.mlp.up_proj in 16 bits, with mlp.gate_proj, mlp.down_proj: `quantize.awq-w4.keep: {by:" in text
    assert written(text, "error").keep == KeepByError(by="error", most=0.042)  # q and o lose 0.012, it alone 0.06


def test_rounding_that_gained_nothing_is_said():
    nothing = replace(even(), linears=tuple(replace(x, error=x.plain_error) for x in even().linears))
    plain = replace(ABOUT, recipe=RECIPE | {"rounding": {"method": "nearest"}})
    assert "100 % of plain rounding's (median): nothing was gained over it" in told(nothing, plain)
    assert "`quantize.awq-w4.rounding: {method: gptq}`" in told(nothing, plain)
    assert "`rounding: {method: gptq}`" in told(nothing, replace(ABOUT, recipe=None))  # another's artifact
    assert "scales and clips helped" in told(even(), plain)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            RECIPE | {"feedback": {"share": 0.6}},
            "Feedback means to: they make good what the layers before them did.",
        ),
        (RECIPE, "They were fitted to inputs unlike those of this text. -> calibrate on more text"),
        (None, "or their calibration misled them. -> None"),
    ],
)
def test_linears_that_lost_more_than_plain_rounding_are_counted(recipe, expected):
    measured, about = changed(even(), "linears", 7, error=0.02), replace(ABOUT, recipe=recipe)
    assert "In 1 of 40 linears the error is above plain rounding's, most in layers.1.mlp.down_proj (200 %)." in told(
        measured, about
    )
    assert expected in told(measured, about)
    assert "above plain" not in told(even(), about)


@pytest.mark.parametrize(
    ("recipe", "scaled", "expected"),
    [
        (RECIPE | {"scale": None}, 1.0, "got no finer grid. -> search scales, `quantize.awq-w4.scale: {points: 20}`"),
        (RECIPE, 1.0, "The scale search left 1 of them about as they were. -> None"),
        (RECIPE, 9.0, "Their weights were scaled for it. -> None"),
        (None, 1.0, "got no finer grid. -> search scales, `scale: {points: 20}`"),
    ],
)
def test_outlier_channels_are_told_with_what_was_done_for_them(recipe, scaled, expected):
    text = told(changed(even(), "inputs", 5, peak=40.0, scaled=scaled), replace(ABOUT, recipe=recipe))
    assert "1 of 20 inputs have channels far above the rest: layers.2.self_attn.o_proj (channel 7, 40 times" in text
    assert expected in text


def test_clipping_that_is_missing_or_hard_is_said():
    assert "Clipping gave up 7 % of the groups' ranges (median) for finer steps, and cut 1.0 % of the" in told(even())
    none = replace(even(), linears=tuple(replace(x, outside=0.0, given_up=0.0) for x in even().linears))
    assert "Nothing was clipped" in told(none)
    assert "`quantize.awq-w4.clip: {points: 20, least: 0.6}`" in told(none)
    hard = changed(even(), "linears", 3, outside=0.2)
    assert "20.0 % of the weights of layers.0.mlp.down_proj lie outside their groups' grids. -> clip less" in told(hard)
    unknown = tuple(replace(x, outside=None, given_up=None, plain_error=None) for x in even().linears)
    assert "lip" not in told(replace(even(), linears=unknown))


def test_text_that_lost_more_than_the_rest_is_asked_for_in_the_calibration():
    text = told(replace(even(), kl_by_domain={"law": 0.05, "code": 0.2, "talk": 0.06}))
    assert "Text of the kind 'code' lost 0.2000 nats a token, the others 0.0550 (median). -> put more 'code'" in text
    assert "of the kind" not in told(even())


def test_errors_that_build_up_or_are_made_good_are_said_where_all_layers_are_known():
    assert "2.0 times the sum" in told(replace(even(), kl_nats=0.16))
    assert "0.50 of the sum" in told(replace(even(), kl_nats=0.04))
    assert "the sum" not in told(changed(replace(even(), kl_nats=0.16), "layers", 2, kl_nats=None))


@pytest.mark.parametrize(
    ("largest", "parent", "expected"),
    [
        (70_000.0, None, "layers.3.mlp.down_proj is the first to reach 70,000 (float16 ends at 65,504) in awq-w4"),
        (float("inf"), None, "reach NaN or infinity in awq-w4; an engine in float16 answers with noise"),
        (7e4, Overflow("layers.2", 66_000.0), "serve in bfloat16: in base, layers.2 is the first to reach 66,000"),
        (7e4, None, "quantize again: base stays within float16 on this text"),
    ],
)
def test_activations_beyond_float16_come_first(largest, parent, expected):
    broken = replace(even(), overflow=Overflow("layers.3.mlp.down_proj", largest), parent_overflow=parent)
    assert expected in told(broken).splitlines()[0]


def test_a_variant_without_numbers_still_gets_its_findings():
    nothing = replace(even(), kl_nats=None, overflow=Overflow("layers.0.mlp.up_proj", float("inf")))
    assert "awq-w4 gives no numbers on 16 windows" in told(nothing)


def test_embeddings_and_massive_activations_are_told_when_they_matter():
    assert "Embeddings, last norm and head alone make 50 % of the loss." in told(replace(even(), outer_kl_nats=0.04))
    massive = changed(even(), "layers", 2, massive=900.0)
    assert "its layer is among the worst" not in told(massive)
    text = told(changed(massive, "layers", 2, kl_nats=0.03))
    assert "Behind layer 2, channel 3 of the residual stream reaches 900 times the median, at position 0" in text
    assert "keep layers.2.mlp.down_proj in 16 bits: `quantize.awq-w4.keep: {by: error, most: 0.021}`; its lay" in text
    assert "Embeddings" not in told(even())
