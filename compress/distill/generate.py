"""Text that a teacher writes itself, to be distilled on: where the model is sure and where it is not is its own.

Each window begins as a text of the user's does and goes on as the model says, by sampling, many windows at a time over
keys and values that are kept. An end of text is a token like any other: behind it the model begins another one.
"""

# z (windows, vocab) logits of the next token · p their probabilities, likeliest first

import copy

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from compress.checkpoint.attention import growing_keys
from compress.distill.recipe import GenerateRecipe
from compress.errors import CompressError
from compress.progress import Progress, silent


def generate(
    model: PreTrainedModel,
    prompts: Integer[Tensor, "texts length"],
    recipe: GenerateRecipe,
    progress: Progress = silent,
) -> Integer[Tensor, "windows written"]:
    """Windows that begin as `prompts` do, each text in turn, and go on in the model's own words."""
    _require_room(recipe, prompts)
    chosen = prompts[torch.arange(recipe.windows) % len(prompts), : recipe.prompt_tokens]
    chance = torch.Generator(model.device).manual_seed(recipe.seed)
    batches, writer = chosen.split(recipe.batch), _in_precision(model, recipe)
    with growing_keys():
        written = [_written(writer, batch.to(model.device), recipe, chance) for batch in progress(batches, "batch")]
    return torch.cat(written).cpu()


def _in_precision(model: PreTrainedModel, recipe: GenerateRecipe) -> PreTrainedModel:
    """The model itself, or a copy in bf16: under autocast keys and values are of two types, and a cache is of one."""
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    return model if model.dtype == dtype else copy.deepcopy(model).to(dtype)


@torch.no_grad()
def _written(
    model: PreTrainedModel, begun: Integer[Tensor, "windows begun"], recipe: GenerateRecipe, chance: torch.Generator
) -> Integer[Tensor, "windows written"]:
    cache = Cache([_Kept(recipe.length) for _ in range(model.config.num_hidden_layers)])
    tokens, step = begun, begun
    for _ in range(recipe.length - recipe.prompt_tokens):
        # The cache by its place: transformers 5.24 has renamed it.
        z = model(step, None, None, cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        step = _sampled(z, recipe, chance)
        tokens = torch.cat([tokens, step], 1)
    return tokens


class _Kept(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values of a layer in one allocation, handed out as far as they are written: no mask is needed then, and
    queries of a group share their keys without a copy of them."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        seen = self.get_seq_length()
        if not seen:
            self.rooms = [x.new_empty(*x.shape[:2], self.length, x.shape[-1]) for x in (key_states, value_states)]
            self.is_initialized = True
        now = seen + key_states.shape[-2]
        for room, states in zip(self.rooms, (key_states, value_states), strict=True):
            room[:, :, seen:now] = states
        self.keys, self.values = (room[:, :, :now] for room in self.rooms)
        return self.keys, self.values


def _sampled(
    z: Float[Tensor, "windows vocab"], recipe: GenerateRecipe, chance: torch.Generator
) -> Integer[Tensor, "windows 1"]:
    p = (z / recipe.temperature).softmax(-1)
    if recipe.top_p == 1:
        return torch.multinomial(p, 1, generator=chance)
    p, ids = p.sort(-1, descending=True)
    before = p.cumsum(-1) - p  # what is likelier; of the likeliest that is nothing, so one is always left
    drawn = torch.multinomial(p.masked_fill(before >= recipe.top_p, 0), 1, generator=chance)
    return ids.gather(1, drawn)


def _require_room(recipe: GenerateRecipe, prompts: Tensor) -> None:
    if recipe.prompt_tokens >= recipe.length:
        raise CompressError(
            f"prompt_tokens: {recipe.prompt_tokens} of {recipe.length} leave nothing to write; lower it"
        )
    if recipe.prompt_tokens > prompts.shape[1]:
        raise CompressError(f"prompt_tokens: {recipe.prompt_tokens}, but prompts have {prompts.shape[1]}; lower it")
