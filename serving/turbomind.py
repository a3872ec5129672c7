"""What config.json may say that TurboMind 0.18 would end at, or would compute otherwise than the model was trained.

Its parser is its own (lmdeploy/turbomind/models): it takes `rope_parameters` for the whole truth where that stands, and
otherwise `rope_theta` and `rope_scaling`; a theta that it does not find so is 10,000 to it, without a word. What
transformers has moved before that depends on its generation, and on InternLM2's having no class there. So what is not
read alike by all of them is refused. A theta that stands nowhere is 10,000 to every reader, and is served.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from serving.kept import FEED_FORWARD, kept_linears
from serving.ranks import INTERNLM2
from serving.shape import Shape

LLAMA = "LlamaForCausalLM"
DEFAULT_THETA = 10_000.0
ROPE_KINDS = ("default", "linear", "dynamic", "llama3")
INTERNLM2_ROPE_KINDS = ("default", "linear", "dynamic")  # beside transformers 5, LMDeploy ends at others in its layout
YARN = "yarn"  # 0.18 ramps between max_position_embeddings, where the model was trained with the original ones
ELSEWHERE = "serve it with --engine transformers"


def problems(shape: Shape) -> Iterator[str]:
    """Each such thing in one line, with the value and what to do."""
    yield from _biases(shape)
    yield from _rope(shape)
    yield from _mixture(shape)


def _biases(shape: Shape) -> Iterator[str]:
    """wqkv's bias ends the loader; those of gate_proj and up_proj are loaded, and then no kernel adds them."""
    if shape.decoder == INTERNLM2 and "bias" in shape.biases:
        yield "bias is true, at which TurboMind 0.18 ends in InternLM2's layout; convert to layout llama"
    if shape.decoder == LLAMA and "mlp_bias" in shape.biases:
        yield f"mlp_bias is true, and TurboMind 0.18 adds no bias to gate_proj and up_proj; {ELSEWHERE}"


def _mixture(shape: Shape) -> Iterator[str]:
    """Feed-forward linears that the loader cannot join: it takes gate and up alike, and in 16 bits with down alone."""
    for layer in range(shape.layers) if shape.kept and shape.bits == 4 else ():
        kept = kept_linears(shape, layer) & FEED_FORWARD
        if kept not in (FEED_FORWARD, {"down_proj"}, set()):
            named = " and ".join(sorted(kept))
            told = "gate_proj and up_proj are loaded in 16 bits with down_proj only"
            yield f"layer {layer} keeps {named} in 16 bits, {told}; quantize it again with all three or none of them"
            return


def _rope(shape: Shape) -> Iterator[str]:
    scaling, parameters = shape.rope.get("rope_scaling"), shape.rope.get("rope_parameters")
    if scaling is not None and parameters is not None and _said(scaling) != _said(parameters):
        yield "rope_scaling and rope_parameters differ, and which is read depends on transformers; leave one out"
        return
    yield from _theta(shape.rope)
    if parameters is not None:
        yield from _kind("rope_parameters", parameters, shape)
    elif scaling is not None:
        yield from _kind("rope_scaling", scaling, shape)


def _theta(rope: Mapping[str, Any]) -> Iterator[str]:
    """Where a theta stands that the engine does not look for there."""
    scaling, parameters = rope.get("rope_scaling") or {}, rope.get("rope_parameters")
    outside = rope.get("rope_theta", DEFAULT_THETA)
    if parameters is not None:
        if "rope_theta" not in parameters and outside not in (None, DEFAULT_THETA):
            yield f"rope_theta is {outside:,.10g} outside rope_parameters, {_unread('inside them')}"
    elif outside is None:
        yield "rope_theta is null, at which the engine ends; write the published value"
    elif scaling.get("rope_theta", outside) != outside:
        yield f"rope_theta is {scaling['rope_theta']:,.10g} inside rope_scaling, {_unread('beside it')}"


def _unread(where: str) -> str:
    return f"where the engine may take {DEFAULT_THETA:,.10g} for it; write it {where}"


def _kind(key: str, rope: Mapping[str, Any], shape: Shape) -> Iterator[str]:
    kinds = INTERNLM2_ROPE_KINDS if shape.decoder == INTERNLM2 else ROPE_KINDS
    legal, kind = ", ".join(kinds), rope.get("rope_type") or rope.get("type")
    if kind is None:
        yield f"{key} names no rope_type, the engine takes {legal}; write which it is"
    elif kind == YARN:
        yield f"{key} is yarn, whose ramp TurboMind 0.18 puts elsewhere than it was trained; {ELSEWHERE}"
    elif kind not in kinds:
        remedy = "convert to layout llama" if kind in ROPE_KINDS else ELSEWHERE
        yield f"{key} is {kind}, the engine takes {legal}; {remedy}"


def _said(rope: Mapping[str, Any]) -> dict[str, Any]:
    """A section without its theta, its kind by one name."""
    kind = rope.get("rope_type") or rope.get("type")
    return {key: value for key, value in rope.items() if key not in ("type", "rope_theta")} | {"rope_type": kind}
