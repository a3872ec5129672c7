"""Each recipe carried out: first it is decided what goes, then the model is written without it."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from compress.checkpoint.checkpoint import Checkpoint
from compress.checkpoint.config import ModelConfig
from compress.checkpoint.write import ModelWriter
from compress.errors import CompressError
from compress.progress import Progress, silent
from compress.prune.depth import Round, by_influence, by_kl, layers_of, require_layers, write_without
from compress.prune.leave_out import LeaveOut
from compress.prune.mix import Way, ways
from compress.prune.narrow import channel_scores, most_worth
from compress.prune.recipe import Compensation, DepthRecipe, Layers, MixRecipe, WidthRecipe
from compress.prune.sizes import FIELDS, Sizes, all_resolved, with_sizes
from compress.prune.text import Text
from compress.prune.width import Plan, SiteError, narrow_model
from compress.quantize.counting import Counted
from compress.quantize.resources import Resources, place_for

Recipe = DepthRecipe | WidthRecipe | MixRecipe


@dataclass(frozen=True)
class Candidate:
    """A way to meet a target, and what it lost of the whole model's answers."""

    way: Way
    kl_nats: float


@dataclass(frozen=True)
class Decision:
    """What goes, and the scores that said so."""

    config: ModelConfig
    removed: Sequence[int]
    sizes: Sizes
    rounds: Sequence[Round] = ()
    candidates: Sequence[Candidate] = ()


@dataclass(frozen=True)
class Work:
    """A source to prune, the text it is measured on, and what the machine gives; messages begin with `place`."""

    source: Checkpoint
    text: Text
    resources: Resources
    place: str
    progress: Progress = silent

    def leave_out(self, text: Text) -> LeaveOut:
        """The measure of what is lost on some windows."""
        return LeaveOut(self.source, text, self.resources, self.progress)


def place_for_windows(
    recipe: Recipe, source: ModelConfig, text: Text, resources: Resources, folder: Path
) -> Path | None:
    """A folder on disk for hidden states to wait in, or None where memory has room for as many as wait at once."""
    length, hidden = text.tokens.shape[1], int(source.fields["hidden_size"])
    most = most_waiting(recipe, source.num_layers, len(text))
    return place_for(max(sets * resources.host_bytes((count, length, hidden)) for sets, count in most), folder)


def most_waiting(recipe: Recipe, num_layers: int, num_windows: int) -> list[tuple[int, int]]:
    """Sets of windows that wait at once, and how many are in each: all for some layers; and where KL is measured, at
    another time, those few for each layer and twice more."""
    run = recipe.run if isinstance(recipe, DepthRecipe) else 1
    measured = 0 if isinstance(recipe, DepthRecipe) and recipe.score != "kl" else min(recipe.windows, num_windows)
    return [(max(run, 2), num_windows), *([(num_layers + 2, measured)] if measured else [])]


def decide(work: Work, recipe: Recipe, workspace: Path) -> Decision:
    """What goes; candidates are written into `workspace` and removed again."""
    match recipe:
        case DepthRecipe():
            rounds = _rounds(work, recipe)
            return _decision(work, layers_of(rounds), {}, rounds)
        case WidthRecipe():
            sizes = _sizes(work, recipe)
            rounds = _worst_rounds(work, recipe.remove_layers, recipe.windows)
            return _decision(work, layers_of(rounds), sizes, rounds)
        case MixRecipe():
            return _mixed(work, recipe, workspace)


def write(work: Work, recipe: Recipe, decision: Decision, writer: ModelWriter) -> list[SiteError]:
    """Writes the pruned model; what the sites lost that were cut."""
    match recipe:
        case DepthRecipe(compensation=None):
            write_without(work.source, list(decision.removed), writer)
            return []
        case DepthRecipe(compensation=Compensation(damping=damping)):
            channels, importance = torch.arange(int(decision.config.fields["hidden_size"])), "gram"
        case WidthRecipe(importance=importance, damping=damping) | MixRecipe(importance=importance, damping=damping):
            channels = _channels(work, importance, decision)
    plan = Plan(decision.config, decision.removed, channels, importance, damping)
    text = work.text
    return narrow_model(work.source, text.tokens, plan, writer, work.resources, work.progress, text.counted)


def _decision(work: Work, removed: list[int], sizes: Sizes, rounds: Sequence[Round]) -> Decision:
    config = with_sizes(work.source.config, sizes)
    return Decision(config.replace(num_hidden_layers=config.num_layers - len(removed)), removed, sizes, rounds)


def _rounds(work: Work, recipe: DepthRecipe) -> list[Round]:
    if recipe.score == "kl":
        leave_out = work.leave_out(work.text[: recipe.windows])
        return by_kl(leave_out, recipe.remove_layers, work.place, contiguous=recipe.contiguous)
    return by_influence(work.source, work.text, recipe, work.place, resources=work.resources, progress=work.progress)


def _worst_rounds(work: Work, remove: Layers | None, windows: int) -> list[Round]:
    return [] if remove is None else by_kl(work.leave_out(work.text[:windows]), remove, work.place)


def _sizes(work: Work, recipe: WidthRecipe) -> Sizes:
    """The sizes wished for, legal together; layers that are not there are refused before them."""
    source = work.source.config
    if recipe.remove_layers is not None:
        require_layers(recipe.remove_layers, source.num_layers, work.place)
    wishes = {name: wish for name in FIELDS if (wish := getattr(recipe, name)) is not None}
    return all_resolved(source, wishes, recipe, work.place)


def _channels(work: Work, importance: str, decision: Decision) -> Int64[Tensor, " channels"]:
    hidden, keep = (int(config.fields["hidden_size"]) for config in (work.source.config, decision.config))
    if keep == hidden:
        return torch.arange(hidden)
    text, counted = work.text, Counted(work.text.counted)
    scores = channel_scores(work.source, text.tokens, importance, work.resources, counted, work.progress)
    return most_worth(scores, keep).cpu()


def _mixed(work: Work, recipe: MixRecipe, workspace: Path) -> Decision:
    """Layers are scored and each way is fitted on all windows but the last, and measured on those: windows that chose
    its layers, or that it was fitted to, would flatter it."""
    tried = ways(work.source.config, recipe, work.place)
    if len(work.text) <= recipe.windows:
        found = f"{recipe.windows} windows to measure on, of {len(work.text)} of calibration"
        raise CompressError(f"{work.place}.windows: {found}; leave some to fit to")
    held_out = work.leave_out(work.text[len(work.text) - recipe.windows :])
    fitting = Work(work.source, work.text[: len(work.text) - recipe.windows], work.resources, work.place, work.progress)
    most = max(way.remove_layers for way in tried)
    rounds = _worst_rounds(fitting, most or None, recipe.windows)
    candidates = []
    for way in tried:
        decision = _decision(work, layers_of(rounds[: way.remove_layers]), way.sizes, ())
        with tempfile.TemporaryDirectory(dir=workspace, prefix=".candidate-") as folder:
            write(fitting, recipe, decision, ModelWriter(Path(folder), decision.config, "llama"))
            candidates.append(Candidate(way, held_out.kl_of(Checkpoint(Path(folder)))))
    best = min(candidates, key=lambda candidate: candidate.kl_nats).way
    rounds = rounds[: best.remove_layers]
    chosen = _decision(work, layers_of(rounds), best.sizes, rounds)
    return Decision(chosen.config, chosen.removed, chosen.sizes, rounds, candidates)
