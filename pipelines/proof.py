"""The proof in the engine: both sides are asked the same, and compared."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import LayoutName
from compress.checkpoint.convert import write_in_layout
from compress.checkpoint.load import load_model
from compress.corpus import Windows
from pipelines.proof_engine import engine_numbers, engine_version, profile
from pipelines.proof_ours import Asked, Numbers, Ours, our_numbers, what_is_asked
from pipelines.stage import device, parent
from registry.conformance import Case, Conformance, Way
from serving.errors import ServingError
from serving.profile import problems
from serving.shape import read_shape

TOP1, PERPLEXITY = 0.99, 0.005
MARGIN = 0.25  # nats; of 28 cases with a cache of 16 or 8 bits on an H200 the worst has 0.057
FINE_KV = (16, 8)  # bits of the KV caches whose rounding stays far below that
WHOLE = 16  # bits of a KV cache that is not quantized


def prove(
    folder: Path, windows: Windows, layouts: Sequence[LayoutName], kv: Sequence[int], tps: Sequence[int], card: str
) -> Iterator[Conformance]:
    """Proofs of a case each, as they come, of what could be served on GPUs like this card; of the rest, why not."""
    version = engine_version()
    found = {(tp, bits): problems(profile(bits, tp), read_shape(folder)) for tp in tps for bits in kv}
    served = [way for way, refused in found.items() if not refused]
    refused = list(dict.fromkeys(reason for reasons in found.values() for reason in reasons))
    if not served:
        raise ServingError(f"{folder}: cannot be served so: {'; '.join(refused)}")
    digest = parent(folder).digest
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        asked = what_is_asked(folder, torch.from_numpy(windows.tokens))
        ours = _ours(folder, asked, [WHOLE, *(bits for _, bits in served)], work)
        for layout, place in _in_layouts(folder, layouts, work):
            for tp, bits in served:
                case = _case(place, asked, ours, Way(layout, bits, tp), work)
                yield Conformance(
                    artifact=digest, engine=version, device=card,
                    thresholds={"top1_agreement": TOP1, "perplexity_ratio": PERPLEXITY, "greedy_margin": MARGIN},
                    windows=windows.digest, passed=case.passed, cases=[case], refused=refused,
                )  # fmt: skip


def _ours(folder: Path, asked: Asked, kv: Sequence[int], work: Path) -> dict[int, Ours]:
    """What our weights say with each KV cache; the GPU is the engine's afterwards."""
    model = load_model(folder, device=device())
    ours = {bits: our_numbers(model, asked, bits, work) for bits in dict.fromkeys(kv)}
    del model
    torch.cuda.empty_cache()
    return ours


def _in_layouts(folder: Path, layouts: Sequence[LayoutName], work: Path) -> Iterator[tuple[LayoutName, Path]]:
    """The folder in each layout; only what it is not in yet is written."""
    stored = Checkpoint(folder).layout
    for layout in layouts:
        place = folder
        if layout != stored:
            place = work / layout
            place.mkdir()
            write_in_layout(folder, layout, place)
        yield layout, place


def _case(folder: Path, asked: Asked, ours: dict[int, Ours], way: Way, work: Path) -> Case:
    """One case: the engine asked and compared."""
    theirs = engine_numbers(folder, asked, way, work)
    if isinstance(theirs, str):
        return Case(**way._asdict(), passed=False, reason=theirs)
    return judged(ours[way.kv_bits], theirs, ours[WHOLE], way)


def judged(ours: Ours, theirs: Numbers, whole: Ours, way: Way) -> Case:
    """The verdict on two sets of numbers; `whole` are ours with a KV cache of 16 bits."""
    perplexity, engine = (math.exp(sum(n.nll_nats) / len(n.nll_nats)) for n in (ours, theirs))
    top1 = _share([x.argmax(-1).tolist() for x in ours.logits], [x.argmax(-1).tolist() for x in theirs.logits])
    reasons = []
    if not abs(engine / perplexity - 1) <= PERPLEXITY:  # not `>`: a NaN must fail
        reasons.append(f"perplexity {engine:.4f} against {perplexity:.4f}")
    if not top1 >= TOP1:
        reasons.append(f"top-1 agreement {100 * top1:.2f} %")
    margin = greedy_margin(ours, theirs)
    if margin == math.inf:
        reasons.append("a text that it writes is ours but not of our length")
    elif way.kv_bits in FINE_KV and not margin <= MARGIN:
        reasons.append(f"it writes a token that we score {margin:.3f} nats below our own")
    return Case(
        **way._asdict(), perplexity=perplexity, engine_perplexity=engine, top1_agreement=top1,
        greedy_agreement=_share(ours.greedy, theirs.greedy), greedy_margin=margin,
        kl_nats=_kl(ours, theirs), kl_to_16_nats=_kl(whole, theirs), simulated_kl_to_16_nats=_kl(whole, ours),
        passed=not reasons, reason=", ".join(reasons),
    )  # fmt: skip


def greedy_margin(ours: Ours, theirs: Numbers) -> float:
    """By how much, at most, our likeliest token beats the engine's in our scores, where two texts first differ.

    Behind that place the two have read other words, and differ as they may; 0 where no text differs, infinity where
    one only ends elsewhere. With a KV cache of 4 bits it is told and not judged: what rounding activations to 16 bits
    moves is a hundredth with a whole cache, but may be more than 1 there, where a number falls on the other side of a
    step.
    """
    margins = [0.0]
    for steps, x, y in zip(ours.steps, ours.greedy, theirs.greedy, strict=True):
        place = next((n for n, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), None)
        if place is not None:
            margins.append(float(steps[place][x[place]] - steps[place][y[place]]))
        elif len(x) != len(y):
            margins.append(math.inf)
    return max(margins)


def _kl(ours: Numbers, theirs: Numbers) -> float:
    """KL from our distribution to the engine's, nats a token, over every token of the texts."""
    lost = [_divergence(x, y) for x, y in zip(ours.logits, theirs.logits, strict=True)]
    return float(torch.cat(lost).mean())


def _divergence(ours: np.ndarray, theirs: np.ndarray) -> Tensor:
    """KL at every token of a text."""
    p, q = (torch.from_numpy(np.array(x, np.float32)).log_softmax(-1) for x in (ours, theirs))
    return (p.exp() * (p - q)).sum(-1)


def _share(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of places where both have the same token; beyond the end of the shorter they differ."""
    same = sum(a == b for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=False))
    return same / sum(max(len(x), len(y)) for x, y in zip(ours, theirs, strict=True))
