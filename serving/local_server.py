"""The OpenAI protocol over a model in this process: a server for a machine without a GPU, one answer at a time.

For trying things where LMDeploy cannot run; under load it queues. A client that goes away stops its answer.
"""

import hmac
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from serving.engine import Engine, Message, Sampling
from serving.errors import ServingError

OPEN = ("/health",)


class Asked(BaseModel):
    """What both kinds of request have; what is unknown here is another server's, and is let be."""

    model_config = ConfigDict(extra="ignore")

    model: str = ""
    stream: bool = False
    max_tokens: int = Field(default=200, ge=1)
    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0

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


def build(engine: Engine, key: str | None) -> FastAPI:
    """The application; with a key, every request but /health must have it."""
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
        return {"object": "list", "data": [{"id": engine.name, "object": "model", "owned_by": "turbopress"}]}

    @app.post("/v1/chat/completions")
    def chat(asked: AskedChat) -> Response:
        return _answer(engine, "chat.completion", _begun(engine.chat(asked.messages, asked.sampling)), asked.stream)

    @app.post("/v1/completions")
    def complete(asked: AskedText) -> Response:
        return _answer(engine, "text_completion", _begun(engine.complete(asked.prompt, asked.sampling)), asked.stream)

    @app.exception_handler(ServingError)
    def refused(request: Request, error: ServingError) -> Response:
        return JSONResponse({"error": {"message": str(error)}}, 400)

    return app


def _begun(answer: Iterator[str]) -> Iterator[str]:
    """The answer with its first piece made, so that what is refused is refused before anything is sent."""
    try:
        first = next(answer, "")
    except ServingError:
        raise
    except Exception as error:  # whatever a model raises about its prompt
        raise HTTPException(400, " ".join(str(error).split())) from error

    def whole() -> Iterator[str]:
        try:
            yield first
            yield from answer
        finally:
            answer.close()  # type: ignore[attr-defined]  # an iterator of ours is a generator

    return whole()


def _answer(engine: Engine, kind: Kind, pieces: Iterator[str], stream: bool) -> Response:
    about = {"id": uuid.uuid4().hex, "created": int(time.time()), "model": engine.name}
    if stream:
        return StreamingResponse(_events(about, kind, pieces), media_type="text/event-stream")
    text = "".join(pieces)
    said = {"message": {"role": "assistant", "content": text}} if kind == "chat.completion" else {"text": text}
    return JSONResponse({**about, "object": kind, "choices": [{"index": 0, **said, "finish_reason": "stop"}]})


def _events(about: dict[str, Any], kind: Kind, pieces: Iterator[str]) -> Iterator[str]:
    told = {**about, "object": f"{kind}.chunk" if kind == "chat.completion" else kind}
    for piece in pieces:
        said = {"delta": {"content": piece}} if kind == "chat.completion" else {"text": piece}
        yield _event({**told, "choices": [{"index": 0, **said, "finish_reason": None}]})
    last: dict[str, Any] = {"delta": {}} if kind == "chat.completion" else {"text": ""}
    yield _event({**told, "choices": [{"index": 0, **last, "finish_reason": "stop"}]})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def run(engine: Engine, *, host: str, port: int, key: str | None) -> None:
    """Serves until a signal; uvicorn handles those."""
    uvicorn.run(build(engine, key), host=host, port=port, log_level="warning")
