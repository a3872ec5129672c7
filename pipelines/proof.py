"""The proof in the engine: both sides are asked the same, and compared.

Every case has a process of its own, because the engine keeps its memory. With a quantized KV cache the engine is
compared with our simulation of that cache, which the comparison table quotes.
"""

import json
import math
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import LayoutName
from compress.checkpoint.convert import write_in_layout
from compress.checkpoint.load import load_model
from compress.corpus import Windows
from compress.evaluate.kv_cache import quantized_cache
from pipelines.stage import device, parent
from registry.conformance import Case, Conformance
from serving.profile import EngineProfile, problems
from serving.server import interpreter
from serving.shape import read_shape

ASKER = Path(__file__).parents[1] / "serving" / "ask_lmdeploy.py"
TOP1, PERPLEXITY = 0.99, 0.005
NUM_TEXTS, NUM_GREEDY = 8, 32


@dataclass(frozen=True)
class Asked:
    """What both are asked: windows of ids, and texts that a tokenizer reads back as the same ids."""

    windows: list[list[int]]
    texts: list[str]
    text_ids: list[list[int]]


@dataclass(frozen=True)
class Numbers:
    """What either says."""

    nll_nats: list[float]
    likeliest: list[list[int]]
    greedy: list[list[int]]


def prove(
    folder: Path, windows: Windows, layouts: Sequence[LayoutName], kv: Sequence[int], tps: Sequence[int]
) -> Conformance:
    """Every case of one artifact that could be served; of the others, why not."""
    asked, digest = what_is_asked(folder, torch.from_numpy(windows.tokens)), parent(folder).digest
    shape = read_shape(folder)
    found = {(tp, bits): problems(_profile(bits, tp), shape) for tp in tps for bits in kv}
    served = [way for way, refused in found.items() if not refused]
    model = load_model(folder, device=device())
    ours = {bits: our_numbers(model, asked, bits) for bits in dict.fromkeys(bits for _, bits in served)}
    del model
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as temporary:
        cases = [
            _case(place, asked, ours[bits], layout=layout, bits=bits, tp=tp, work=Path(temporary))
            for layout, place in _in_layouts(folder, layouts, Path(temporary))
            for tp, bits in served
        ]
    return Conformance(
        artifact=digest,
        engine=_engine_version(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        thresholds={"top1_agreement": TOP1, "perplexity_ratio": PERPLEXITY},
        windows=windows.digest,
        passed=bool(cases) and all(case.passed for case in cases),
        cases=cases,
        refused=list(dict.fromkeys(reason for refused in found.values() for reason in refused)),
    )


def _profile(bits: int, tp: int) -> EngineProfile:
    return EngineProfile(quant_policy=0 if bits == 16 else bits, tp=tp)  # type: ignore[arg-type]  # checked by pydantic


def what_is_asked(folder: Path, tokens: torch.Tensor) -> Asked:
    """The windows, and the texts of some of them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = min(tokens.shape[1], (read_shape(folder).max_positions or tokens.shape[1]) - NUM_GREEDY)
    texts = [tokenizer.decode(row[1:length].tolist(), skip_special_tokens=True) for row in tokens[:NUM_TEXTS]]
    return Asked(tokens.tolist(), texts, [tokenizer(text)["input_ids"][:length] for text in texts])


@torch.no_grad()
def our_numbers(model: PreTrainedModel, asked: Asked, bits: int) -> Numbers:
    """The unpacked weights in float32, their KV cache in 16 bits left as it is."""
    place = model.device

    def logits(ids: list[int]) -> torch.Tensor:
        cache = quantized_cache(bits) if bits < 16 else None
        tokens = torch.tensor([ids], device=place)
        scores: torch.Tensor = model(tokens, None, None, cache, use_cache=bits < 16).logits[0].float()
        return scores

    losses = []
    for ids in asked.windows:
        target = torch.tensor(ids[1:], device=place)
        losses.append(torch.nn.functional.cross_entropy(logits(ids)[:-1], target).item())
    likeliest = [logits(ids).argmax(-1).tolist() for ids in asked.text_ids]
    return Numbers(losses, likeliest, [_greedy(model, ids, bits) for ids in asked.text_ids])


def _greedy(model: PreTrainedModel, ids: list[int], bits: int) -> list[int]:
    """How a text goes on, always with the likeliest token."""
    start = torch.tensor([ids], device=model.device)
    cache = {"past_key_values": quantized_cache(bits)} if bits < 16 else {}
    whole = model.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=NUM_GREEDY, min_new_tokens=NUM_GREEDY,
        do_sample=False, pad_token_id=0, **cache,
    )  # fmt: skip
    said: list[int] = whole[0, len(ids) :].tolist()
    return said


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


def _case(folder: Path, asked: Asked, ours: Numbers, *, layout: LayoutName, bits: int, tp: int, work: Path) -> Case:
    """One case: the engine asked and compared."""
    if torch.cuda.device_count() < tp:
        reason = f"not run: {torch.cuda.device_count()} GPU here"
        return Case(layout=layout, kv_bits=bits, tp=tp, passed=False, reason=reason)
    theirs = engine_numbers(folder, asked, bits=bits, tp=tp, work=work)
    if isinstance(theirs, str):
        return Case(layout=layout, kv_bits=bits, tp=tp, passed=False, reason=theirs)
    return judged(ours, theirs, layout=layout, bits=bits, tp=tp)


def judged(ours: Numbers, theirs: Numbers, *, layout: str, bits: int, tp: int) -> Case:
    """The verdict on two sets of numbers."""
    perplexity, engine = (math.exp(sum(n.nll_nats) / len(n.nll_nats)) for n in (ours, theirs))
    top1, greedy = _share(ours.likeliest, theirs.likeliest), _share(ours.greedy, theirs.greedy)
    reasons = []
    if not abs(engine / perplexity - 1) <= PERPLEXITY:  # not `>`: a NaN must fail
        reasons.append(f"perplexity {engine:.4f} against {perplexity:.4f}")
    if not top1 >= TOP1:
        reasons.append(f"top-1 agreement {100 * top1:.2f} %")
    return Case(
        layout=layout, kv_bits=bits, tp=tp, perplexity=perplexity, engine_perplexity=engine, top1_agreement=top1,
        greedy_agreement=greedy, passed=not reasons, reason=", ".join(reasons),
    )  # fmt: skip


def _share(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of places where both have the same token; beyond the end of the shorter they differ."""
    same = sum(a == b for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=False))
    return same / sum(max(len(x), len(y)) for x, y in zip(ours, theirs, strict=True))


def engine_numbers(folder: Path, asked: Asked, *, bits: int, tp: int, work: Path) -> Numbers | str:
    """The engine's numbers, or its last words."""
    shape, job = read_shape(folder), work / "job.json"
    length = max(map(len, [*asked.windows, *asked.text_ids])) + NUM_GREEDY
    told: dict[str, Any] = {"model_format": shape.quant_method}
    told |= _profile(bits, tp).model_dump(include={"tp", "quant_policy"})
    told |= {"cache_max_entry_count": 0.2, "session_len": length, "max_batch_size": 16, "dtype": "float16"}
    values = {"folder": str(folder), "engine": told, "windows": asked.windows, "texts": asked.texts}
    job.write_text(json.dumps(values | {"greedy": NUM_GREEDY}), "utf8")
    job.with_suffix(".answer").unlink(missing_ok=True)
    done = subprocess.run([interpreter(), str(ASKER), str(job)], capture_output=True, text=True, check=False)
    if not job.with_suffix(".answer").exists():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["no word"]
        telling = [line for line in lines if "Error" in line or "Check failed" in line]
        return f"the engine ended with status {done.returncode}: {(telling or lines)[-1].strip()}"
    answer = json.loads(job.with_suffix(".answer").read_text("utf8"))
    if answer["input_tokens"] != (lengths := list(map(len, asked.text_ids))):
        return f"the engine read the texts as {answer['input_tokens']} tokens, not {lengths}"
    return Numbers(answer["nll_nats"], answer["likeliest"], answer["greedy"])


def _engine_version() -> str:
    told = "import importlib.metadata as m; print(m.version('lmdeploy'))"
    asked = subprocess.run([interpreter(), "-c", told], capture_output=True, text=True, check=False)
    return f"lmdeploy {asked.stdout.strip() or 'of no version'}"
