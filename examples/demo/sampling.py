"""Sampling from a small Llama, thousands of rows at a time.

A 135M model does so little work per token that an ordinary generate loop spends its time launching kernels. Three
things cure that:

- the key/value cache is allocated once; prompts are padded on the left, so every row starts at the same slot and one
  number (`slot`) says where all are (the rotary embedding is relative and does not mind);
- a decoding step reads and writes only tensors that already exist, so it is recorded once as a CUDA graph and then
  replayed. The attention reads the first `reach` slots; a few graphs with growing `reach` skip the empty ones;
- the query heads that share a key/value head are laid out as if they were successive queries. Grouped-query attention
  then is plain attention with no key or value repeated in memory.

On a CPU the same step runs without the graph, for looking at a few samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig

HIDDEN_SCORE = -30000.0  # finite: a padded query sees nothing at all, and softmax over -inf alone is not a number
REACH_STEP = 64
GRAM_FACTORS = (104729, 15485863, 32452843, 49979687, 67867967)
GRAM_PLACES = 16381


@dataclass(frozen=True)
class Layer:
    """One decoder layer; projections that share an input are joined into one matrix."""

    attention_norm: Tensor
    qkv: Tensor
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Taste:
    """The next token is one of the likeliest `top_k`, of these of the likeliest that reach `top_p`, at `temperature`.

    No six tokens follow each other twice in a row's text: small models otherwise go in circles.
    """

    temperature: float = 0.75
    top_k: int = 40
    top_p: float = 0.95


def read_layer(state: dict[str, Tensor], number: int) -> Layer:
    """Returns layer `number` of a transformers Llama state."""
    at = f"model.layers.{number}."

    def joined(*names: str) -> Tensor:
        return torch.cat([state[f"{at}{name}.weight"] for name in names])

    return Layer(
        attention_norm=joined("input_layernorm"),
        qkv=joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out=joined("self_attn.o_proj"),
        mlp_norm=joined("post_attention_layernorm"),
        gate_up=joined("mlp.gate_proj", "mlp.up_proj"),
        down=joined("mlp.down_proj"),
    )


def rotary_table(head_dim: int, theta: float, num_slots: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines (slot, head_dim) for the half-split rotary embedding."""
    steps = theta ** (-torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float64) / head_dim)
    angles = torch.arange(num_slots, device=like.device, dtype=torch.float64)[:, None] * steps
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Returns x (row, head, slot, head_dim) turned by each slot's angle."""
    low, high = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-high, low], dim=-1) * sines


def places(recent: Tensor, tokens: Tensor) -> Tensor:
    """Returns where a row's table notes that each of `tokens` (row, candidate) came after the `recent` ones."""
    return (sum(f * recent[:, n, None] for n, f in enumerate(GRAM_FACTORS)) + tokens * 7919) % GRAM_PLACES


def draw(logits: Tensor, used: Tensor, recent: Tensor, taste: Taste) -> Tensor:
    """Returns one token a row, (row, 1); the race of exponential clocks draws without leaving the device.

    Notes the sequence in `used` and moves `recent` on.
    """
    best, tokens = logits.topk(taste.top_k, dim=-1)
    where = places(recent, tokens)
    best, order = best.float().masked_fill(used.gather(1, where), HIDDEN_SCORE).sort(dim=-1, descending=True)
    p = (best / taste.temperature).softmax(dim=-1)
    p = p.masked_fill(p.cumsum(dim=-1) - p > taste.top_p, 0.0)
    winner = order.gather(1, (p / torch.empty_like(p).exponential_()).argmax(dim=-1, keepdim=True))
    used.scatter_(1, where.gather(1, winner), True)
    drawn = tokens.gather(1, winner)
    recent.copy_(torch.cat([recent[:, 1:], drawn], dim=1))
    return drawn


class Sampler:
    """A Llama folder, its cache, and room for `num_rows` prompts and what follows them."""

    def __init__(
        self,
        folder: Path,
        num_rows: int,
        num_prompt_slots: int,
        num_new_tokens: int,
        taste: Taste,
        device: torch.device,
    ) -> None:
        state = {name: t.to(device, torch.bfloat16) for name, t in load_file(folder / "model.safetensors").items()}
        config = LlamaConfig.from_pretrained(folder)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.eps, self.eos, self.taste = config.rms_norm_eps, config.eos_token_id, taste
        self.embedding, self.final_norm = state["model.embed_tokens.weight"], state["model.norm.weight"]
        self.layers = [read_layer(state, n) for n in range(config.num_hidden_layers)]
        self.head_dim = config.head_dim
        self.num_prompt_slots, self.num_new_tokens = num_prompt_slots, num_new_tokens
        num_slots = -(-(num_prompt_slots + num_new_tokens) // REACH_STEP) * REACH_STEP
        theta = config.rope_parameters["rope_theta"]
        self.cosines, self.sines = rotary_table(self.head_dim, theta, num_slots, self.embedding)
        room = (config.num_hidden_layers, num_rows, self.kv_heads, num_slots, self.head_dim)
        self.keys, self.values = self.embedding.new_zeros(room), self.embedding.new_zeros(room)
        self.mask = self.embedding.new_full((num_rows, 1, 1, num_slots), HIDDEN_SCORE)
        self.token = torch.zeros((num_rows, 1), dtype=torch.long, device=device)
        self.written = torch.zeros((num_rows, num_new_tokens), dtype=torch.long, device=device)
        self.finished = torch.zeros((num_rows, 1), dtype=torch.bool, device=device)
        self.used = torch.zeros((num_rows, GRAM_PLACES), dtype=torch.bool, device=device)
        self.recent = torch.zeros((num_rows, len(GRAM_FACTORS)), dtype=torch.long, device=device)
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        self.steps: dict[int, Callable[[], None]] = {}
        self.graph_pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        torch.backends.cuda.enable_cudnn_sdp(False)  # it would plan each shape anew; the other kernel takes the mask

    @torch.no_grad()
    def write(self, prompts: list[list[int]], finished_share: float) -> list[list[int]]:
        """Returns what follows each prompt, without the end token; a text that is too long for its room breaks off.

        Stops when `finished_share` of the rows have ended. There must be as many prompts as the sampler has rows.
        """
        self._start_(prompts)
        for n in range(self.num_new_tokens - 1):
            reach = -(-(self.num_prompt_slots + n + 1) // REACH_STEP) * REACH_STEP
            self._step_for(reach)()
            if n % 16 == 0 and self.finished.float().mean().item() >= finished_share:
                break
        return [row[: row.index(self.eos)] if self.eos in row else row for row in self.written.tolist()]

    def _start_(self, prompts: list[list[int]]) -> None:
        """Fills the prompt slots of the cache and draws each row's first token."""
        longest = max(map(len, prompts))
        if longest > self.num_prompt_slots:
            raise ValueError(f"a prompt has {longest} tokens; raise num_prompt_slots ({self.num_prompt_slots})")
        padding = [self.num_prompt_slots - len(prompt) for prompt in prompts]
        padded = [[self.eos] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)]
        tokens = torch.tensor(padded, device=self.slot.device)
        slots = torch.arange(self.mask.shape[-1], device=self.slot.device)
        seen = (slots >= torch.tensor(padding, device=self.slot.device)[:, None]) & (slots < self.num_prompt_slots)
        self.mask.fill_(HIDDEN_SCORE).masked_fill_(seen[:, None, None], 0.0)
        self.used.zero_()
        self.recent.copy_(tokens[:, -self.recent.shape[1] :])
        for start in range(0, len(prompts), 256):
            rows = slice(start, min(start + 256, len(prompts)))
            self.token[rows] = self._read_prompts_(tokens[rows], rows)
        self.written.fill_(self.eos)
        self.written[:, :1] = self.token
        self.finished.copy_(self.token == self.eos)
        self.slot.fill_(self.num_prompt_slots)

    def _read_prompts_(self, tokens: Tensor, rows: slice) -> Tensor:
        """Fills these rows' prompt slots and returns their first drawn tokens."""
        width = self.num_prompt_slots
        causal = torch.full((width, width), HIDDEN_SCORE, device=tokens.device, dtype=self.mask.dtype).triu(1)
        mask = (
            (self.mask[rows, :, :, :width] + causal)
            .clamp(min=HIDDEN_SCORE)
            .repeat(1, 1, self.heads // self.kv_heads, 1)
        )
        slots = torch.arange(width, device=tokens.device)
        return draw(self._logits(tokens, slots, rows, mask), self.used[rows], self.recent[rows], self.taste)

    def _step_for(self, reach: int) -> Callable[[], None]:
        """Returns the decoding step whose attention reads `reach` slots; on CUDA it is recorded at its first use."""
        if reach not in self.steps:
            self.steps[reach] = self._record(reach) if self.slot.is_cuda else lambda: self._step_(reach)
        return self.steps[reach]

    def _record(self, reach: int) -> Callable[[], None]:
        """Returns the replay of a recorded step; what the step before the recording drew and noted is put back."""
        state = (self.mask, self.token, self.written, self.finished, self.used, self.recent, self.slot)
        kept = [t.clone() for t in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step_(reach)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.graph_pool):
            self._step_(reach)
        for tensor, before in zip(state, kept, strict=True):
            tensor.copy_(before)
        return graph.replay

    def _step_(self, reach: int) -> None:
        """Reads the last token of every row, draws the next and moves on one slot."""
        self.mask.index_fill_(3, self.slot, 0.0)
        logits = self._logits(self.token, self.slot, slice(None), self.mask[..., :reach])
        drawn = draw(logits, self.used, self.recent, self.taste).masked_fill(self.finished, self.eos)
        self.token.copy_(drawn)
        self.finished.logical_or_(drawn == self.eos)
        self.slot.add_(1)
        self.written.index_copy_(1, self.slot - self.num_prompt_slots, drawn)

    def _logits(self, tokens: Tensor, slots: Tensor, rows: slice, mask: Tensor) -> Tensor:
        """Returns the logits after each row's last token; the cache holds keys and values for `slots` afterwards."""
        cosines, sines = self.cosines[slots], self.sines[slots]
        x = functional.embedding(tokens, self.embedding)
        width = (x.shape[-1],)
        for n, layer in enumerate(self.layers):
            h = functional.linear(functional.rms_norm(x, width, layer.attention_norm, self.eps), layer.qkv)
            h = h.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            turned = rotated(h[:, : -self.kv_heads], cosines, sines)
            keys, values = self.keys[n, rows], self.values[n, rows]
            keys.index_copy_(2, slots, turned[:, self.heads :])
            values.index_copy_(2, slots, h[:, -self.kv_heads :])
            reach = mask.shape[-1]
            mixed = self._attend(turned[:, : self.heads], keys[:, :, :reach], values[:, :, :reach], mask)
            x = x + functional.linear(mixed, layer.out)
            gate, up = functional.linear(functional.rms_norm(x, width, layer.mlp_norm, self.eps), layer.gate_up).chunk(
                2, dim=-1
            )
            x = x + functional.linear(functional.silu(gate) * up, layer.down)
        return functional.linear(functional.rms_norm(x[:, -1], width, self.final_norm, self.eps), self.embedding)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Returns the mixed values (row, slot, hidden); a group's heads stand in line as queries of their key head."""
        in_line = queries.unflatten(1, (self.kv_heads, -1)).flatten(2, 3)
        mask = mask.expand(-1, self.kv_heads, in_line.shape[2], -1)
        mixed = functional.scaled_dot_product_attention(in_line, keys, values, attn_mask=mask)
        return mixed.reshape(queries.shape).transpose(1, 2).flatten(2)
