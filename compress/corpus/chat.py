"""Conversations as the model saw them in training: its own chat template, and which characters the assistant wrote.

Most published templates do not mark the answers, so they are found by rendering twice: what stands between a
conversation that is open for its answer and the same with the answer is the answer, its end mark with it. Where a
template changes what came before (some leave earlier reasoning out) there is no such place, and that is said.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compress.errors import CompressError, first_line

ROLES = ("system", "user", "assistant", "tool", "environment")
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")

Span = tuple[int, int]  # from, to, in characters
Message = dict[str, str]


@dataclass(frozen=True)
class ChatTemplate:
    """A model's own markup, with the special tokens that it may name."""

    text: str
    tokens: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> "ChatTemplate | None":
        """The template in a model folder's tokenizer_config.json, or None where it has none."""
        path = folder / "tokenizer_config.json"
        try:
            config = json.loads(path.read_text("utf8"))
        except (OSError, ValueError) as error:
            raise CompressError(f"{path}: not read ({error}); run `dvc repro fetch` again") from None
        text = config.get("chat_template")
        return cls(text, {name: config[name] for name in NAMED if config.get(name)}) if text else None

    def rendered(self, messages: object, place: str, *, spans: bool) -> tuple[str, tuple[Span, ...] | None]:
        """A conversation in the markup; with `spans`, where the assistant's answers stand in it."""
        talk = _conversation(messages, place)
        whole = self._render(talk, place)
        return whole, tuple(self._answers(talk, whole, place)) if spans else None

    def _answers(self, talk: list[Message], whole: str, place: str) -> list[Span]:
        return [self._answer(talk, n, whole, place) for n, m in enumerate(talk) if m["role"] == "assistant"]

    def _answer(self, talk: list[Message], number: int, whole: str, place: str) -> Span:
        before = self._render(talk[:number], place, answer=True)
        after = self._render(talk[: number + 1], place).rstrip()
        if not (after.startswith(before) and whole.startswith(after)):
            raise CompressError(
                f"{place}: the chat template writes the conversation before message {number} in another way once it "
                "is answered, so where the answer stands is unknown; write counts: all"
            )
        return len(before), len(after)

    def _render(self, talk: list[Message], place: str, *, answer: bool = False) -> str:
        from jinja2 import TemplateError  # noqa: PLC0415 - both are slow, and plain texts need neither
        from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415

        try:
            (text,), _ = render_jinja_template(
                [talk], chat_template=self.text, add_generation_prompt=answer, **self.tokens
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise CompressError(
                f"{place}: the chat template refuses it ({first_line(error)}); correct or remove the row"
            ) from None
        return str(text)


def _conversation(messages: object, place: str) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise CompressError(f"{place}: messages is {_short(messages)}; give a list of {{role, content}}")
    return [_message(message, f"{place}: messages[{number}]") for number, message in enumerate(messages)]


def _message(message: object, place: str) -> Message:
    role = message.get("role") if isinstance(message, Mapping) else None
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(role, str) or not isinstance(content, str):
        raise CompressError(f"{place} is {_short(message)}; give it a role and a content, both text")
    if role not in ROLES:
        raise CompressError(f"{place} has the role {role!r}; known are {', '.join(ROLES)}")
    return {"role": role, "content": content}


def _short(value: object) -> str:
    return repr(json.dumps(value, ensure_ascii=False, default=str)[:60])
