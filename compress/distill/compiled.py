"""Compiled layers while a training lasts, where that pays.

At InternLM2-1.8B's shape on an H200 (benchmarks/results/distill_speed.json) compiling takes some 12 seconds and saves
nearly a tenth of one a step; smaller models take and save less. So it is worth its time after 130 steps or so.
"""

import importlib.util
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from compress.distill.losses import AttentionRelation
from compress.distill.recipe import DistillRecipe

PAYS_AFTER = 200  # steps


def resolved(recipe: DistillRecipe, device: torch.device) -> DistillRecipe:
    """The recipe with `compile` said: as the user did, or else true where it pays and can be."""
    if recipe.compile is not None:
        return recipe
    looks_inside = any(isinstance(loss, AttentionRelation) for loss in recipe.losses)
    pays = device.type == "cuda" and recipe.steps >= PAYS_AFTER and not looks_inside
    return recipe.model_copy(update={"compile": pays and _can_compile()})


def _can_compile() -> bool:
    """Whether there is what torch compiles for a GPU with: Triton, and the C compiler that it calls."""
    compilers = [os.environ.get("CC"), "cc", "gcc", "clang"]
    return importlib.util.find_spec("triton") is not None and any(name and shutil.which(name) for name in compilers)


@contextmanager
def compiled(*models: PreTrainedModel) -> Iterator[None]:
    """While this is open, the models' layers run compiled."""
    layers: list[Any] = list(itertools.chain(*(model.model.layers for model in models)))
    for layer in layers:
        layer.compile()
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
