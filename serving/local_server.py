"""The OpenAI protocol over a model in this process: a server for a machine without a GPU, one answer at a time.

For trying things where LMDeploy cannot run; under load it queues. A client that goes away stops its answer.
"""

import hmac
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from serving.engine import Ending, Engine, Message, Pieces, Sampling
from serving.errors import ServingError

OPEN = ("/health",)


class StreamOptions(BaseModel):
    """Whether the last event of a stream says what the answer took."""

    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of request have; what is unknown here is another server's, and is let be."""

    model_config = ConfigDict(extra="ignore")

    model: str = ""
    stream: bool = False
    max_tokens: int = Field(default=200, ge=1)
    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    stream_options: StreamOptions | None = None

    @property
    def sampling(self) -> Sampling:
        """The same for an engine."""
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.seed)


class AskedChat(Asked):
    """/v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)


class AskedText(Asked):
    """/v1/completions."""

    prompt: str


Kind = Literal["chat.completion", "text_completion"]


def build(engine: Engine, key: str | None, name: str | None = None) -> FastAPI:
    """The application, which calls the model by this name; with a key, every request but /health must have it."""
    name = name or engine.name
    app = FastAPI(title="turbopress", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def with_key(request: Request, go_on: Any) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key and request.url.path not in OPEN and not hmac.compare_digest(given.encode(), key.encode()):
            return JSONResponse({"error": {"message": "a key is wanted"}}, 401)
        answer: Response = await go_on(request)
        return answer

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": "turbopress"}]}

    @app.post("/v1/chat/completions")
    def chat(asked: AskedChat) -> Response:
        return _answer(name, "chat.completion", _begun(engine.chat(asked.messages, asked.sampling)), asked)

    @app.post("/v1/completions")
    def complete(asked: AskedText) -> Response:
        return _answer(name, "text_completion", _begun(engine.complete(asked.prompt, asked.sampling)), asked)

    @app.exception_handler(ServingError)
    def refused(request: Request, error: ServingError) -> Response:
        return JSONResponse({"error": {"message": str(error)}}, 400)

    return app


def _begun(answer: Pieces) -> Pieces:
    """The answer with its first piece made, so that what is refused is refused before anything is sent."""
    try:
        first: str | None = next(answer)
    except StopIteration as ended:  # without a word
        first, end = None, ended.value
    except ServingError:
        raise
    except Exception as error:  # whatever a model raises about its prompt
        raise HTTPException(400, " ".join(str(error).split())) from error

    def whole() -> Pieces:
        if first is None:
            return end
        with closing(answer):
            yield first
            return (yield from answer)

    return whole()


def _answer(name: str, kind: Kind, pieces: Pieces, asked: Asked) -> Response:
    about = {"id": uuid.uuid4().hex, "created": int(time.time()), "model": name}
    if asked.stream:
        told = bool(asked.stream_options and asked.stream_options.include_usage)
        return StreamingResponse(_events(about, kind, pieces, told), media_type="text/event-stream")
    text, end = _joined(pieces)
    said = {"message": {"role": "assistant", "content": text}} if kind == "chat.completion" else {"text": text}
    choice = {"index": 0, **said, "finish_reason": _reason(end)}
    return JSONResponse({**about, "object": kind, "choices": [choice], "usage": _usage(end)})


def _joined(pieces: Pieces) -> tuple[str, Ending | None]:
    said: list[str] = []
    while True:
        try:
            said.append(next(pieces))
        except StopIteration as ended:
            return "".join(said), ended.value


def _reason(end: Ending | None) -> str:
    return end.reason if end else "stop"


def _usage(end: Ending | None) -> dict[str, int] | None:
    """What the answer took, where whoever made it counted."""
    if end is None:
        return None
    total = end.prompt_tokens + end.completion_tokens
    return {
        "prompt_tokens": end.prompt_tokens, "completion_tokens": end.completion_tokens, "total_tokens": total,
    }  # fmt: skip


def _events(about: dict[str, Any], kind: Kind, pieces: Pieces, with_usage: bool) -> Iterator[str]:
    """The stream; where usage was asked for, every event has it, which is null until the last."""
    told = {**about, "object": f"{kind}.chunk" if kind == "chat.completion" else kind}
    told |= {"usage": None} if with_usage else {}
    empty: dict[str, Any] = {"delta": {}} if kind == "chat.completion" else {"text": ""}
    end = None
    while True:
        try:
            piece = next(pieces)
        except StopIteration as ended:
            end = ended.value
            break
        except ServingError as error:  # after what was sent already
            yield _event({"error": {"message": str(error)}})
            return
        said = {"delta": {"content": piece}} if kind == "chat.completion" else {"text": piece}
        yield _event({**told, "choices": [{"index": 0, **said, "finish_reason": None}]})
    yield _event({**told, "choices": [{"index": 0, **empty, "finish_reason": _reason(end)}]})
    if with_usage:
        yield _event({**told, "choices": [], "usage": _usage(end)})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def run(engine: Engine, *, name: str, host: str, port: int, key: str | None) -> None:
    """Serves until a signal; uvicorn handles those."""
    uvicorn.run(build(engine, key, name), host=host, port=port, log_level="warning")
