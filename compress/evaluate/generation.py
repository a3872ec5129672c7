"""Looking at a model: what a stored artifact answers, through transformers on the unpacked weights."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextIteratorStreamer

from compress.checkpoint.attention import growing_keys
from compress.checkpoint.load import load_model
from compress.checkpoint.tokenizer import write_tokenizer
from compress.errors import CompressError

Message = dict[str, str]  # {"role": "user", "content": "…"}


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; temperature 0 always takes the likeliest."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class Spoken:
    """What an answer took: what a generator of its pieces returns."""

    prompt_tokens: int
    new_tokens: int
    cut: bool  # at max_tokens, and not by a stop token


Pieces = Generator[str, None, Spoken]


@dataclass(frozen=True)
class Speaker:
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: int | list[int] | None  # as generation_config.json has them

    @classmethod
    def load(cls, folder: Path, device: str) -> "Speaker":
        """The stored model, ready to speak; its tokenizer is read through our conversion, so no code of it runs."""
        with TemporaryDirectory() as clean:
            write_tokenizer(folder, Path(clean))
            tokenizer = AutoTokenizer.from_pretrained(clean)
            stop = GenerationConfig.from_pretrained(clean).eos_token_id
        return cls(load_model(folder, device=device), tokenizer, stop)

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation in the model's own chat markup, open for the assistant's answer."""
        if not self.tokenizer.chat_template:
            raise CompressError("chat: this model has no chat template; continue a text with --raw")
        text: str = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return text

    def answer(self, prompt: str, sampling: Sampling, *, marked: bool) -> Pieces:
        """Pieces of the answer as they come, until it is closed; a `marked` prompt has its BOS and markup already."""
        inputs = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=not marked).to(self.model.device)
        if not inputs["input_ids"].numel():
            raise CompressError("prompt: holds no token; write something to continue")
        self.require_room(inputs["input_ids"].shape[1])
        return (yield from self.stream(dict(inputs), sampling))

    def require_room(self, length: int) -> None:
        """Refuses a prompt beyond the positions that the model was made for; a RoPE that stretches takes any."""
        config = self.model.config.get_text_config()
        stretches = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") != "default"
        if length > config.max_position_embeddings and not stretches:
            limit = config.max_position_embeddings
            raise CompressError(f"prompt: has {length} tokens and the model reads {limit}; shorten it")

    def stream(self, inputs: dict[str, torch.Tensor], sampling: Sampling) -> Pieces:
        """Pieces of what follows what the model is given: token ids, and whatever else it takes."""
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failures: list[BaseException] = []
        ids: list[torch.Tensor] = []  # of prompt and answer, once it is whole
        stopped = Event()
        told = (inputs, streamer, sampling, stopped, failures, ids)
        thread = Thread(target=self._speak, args=told, daemon=True, name="speaker")
        thread.start()
        try:
            yield from streamer
        finally:  # the reader may close us before the end
            stopped.set()
            thread.join()
        if failures:
            raise failures[0]
        return self._spoken(inputs["input_ids"].shape[1], ids[0][0], sampling)

    def _spoken(self, prompt_tokens: int, ids: torch.Tensor, sampling: Sampling) -> Spoken:
        stops = [self.stop_ids] if isinstance(self.stop_ids, int) else self.stop_ids or []
        new_tokens = len(ids) - prompt_tokens
        return Spoken(prompt_tokens, new_tokens, new_tokens == sampling.max_tokens and int(ids[-1]) not in stops)

    def _speak(
        self,
        inputs: dict[str, torch.Tensor],
        streamer: TextIteratorStreamer,
        sampling: Sampling,
        stopped: Event,
        failures: list[BaseException],
        ids: list[torch.Tensor],
    ) -> None:
        """Generates into the streamer, and ends it whatever happens: its reader would wait for ever."""
        try:
            ids.append(self._generate(inputs, streamer, sampling, stopped))
        except BaseException as error:
            failures.append(error)
            streamer.end()

    def _generate(
        self, inputs: dict[str, torch.Tensor], streamer: TextIteratorStreamer, sampling: Sampling, stopped: Event
    ) -> torch.Tensor:
        torch.manual_seed(sampling.seed)
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            eos_token_id=self.stop_ids,
            pad_token_id=self.tokenizer.pad_token_id,
            **(drawn if sampling.temperature else {"do_sample": False}),
        )
        ended = [lambda tokens, _: torch.full(tokens.shape[:1], stopped.is_set(), device=tokens.device)]
        with growing_keys():
            ids: torch.Tensor = self.model.generate(
                **(inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}), generation_config=config,
                streamer=streamer, stopping_criteria=ended,
            )  # fmt: skip
        return ids
