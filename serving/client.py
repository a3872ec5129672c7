"""The OpenAI protocol, spoken to LMDeploy or any other server that knows it: streaming, and stopping when asked.

An answer is read from the server as it comes. Closing its iterator closes the connection, which is how the protocol
says stop. The API key comes from the environment and is shown to nobody but the server.
"""

import http.client
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from serving.engine import Message, Pieces, Sampling
from serving.errors import ServingError

API_KEY = "TURBOPRESS_API_KEY"
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 600.0


def is_address(text: str) -> bool:
    """Whether the text is a server's address and no folder."""
    return text.startswith(("http://", "https://"))


class Client:
    """A running server, and the model that it serves."""

    def __init__(self, address: str, model: str | None = None, key: str | None = None) -> None:
        self.address = address.rstrip("/").removesuffix("/v1")
        self._key = key if key is not None else os.environ.get(API_KEY)
        self._model = model

    @property
    def name(self) -> str:
        """The served model's name; the server's first, unless one was given."""
        if self._model is None:
            self._model = next(iter(self.models()), "default")  # some servers list nothing and serve one
        return self._model

    def models(self) -> list[str]:
        """The names of what is served."""
        with closing(self._connect(CONNECT_TIMEOUT_S)) as connection:
            listed = json.loads(self._ask(connection, "GET", "/v1/models").read())
        return [model["id"] for model in listed["data"]]

    def is_healthy(self) -> bool:
        """Whether the server answers now."""
        try:
            with closing(self._connect(2.0)) as connection:
                self._ask(connection, "GET", "/health").read()
        except ServingError:
            return False
        return True

    def chat(self, messages: Sequence[Message], sampling: Sampling) -> Pieces:
        """The assistant's answer, in pieces."""
        return self._stream("/v1/chat/completions", {"messages": list(messages)}, sampling)

    def complete(self, text: str, sampling: Sampling) -> Pieces:
        """How the text goes on."""
        return self._stream("/v1/completions", {"prompt": text}, sampling)

    def _stream(self, path: str, asked: dict[str, Any], sampling: Sampling) -> Pieces:
        body = {
            "model": self.name,
            **asked,
            "stream": True,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        with closing(self._connect(ANSWER_TIMEOUT_S)) as connection:
            reason, said = None, False
            for event in _events(self._ask(connection, "POST", path, body), self.address):
                for choice in event.get("choices", []):
                    piece = _piece(choice)
                    said, reason = said or bool(piece), reason or choice.get("finish_reason")
                    if piece:
                        yield piece
            if reason is None:
                raise ServingError(f"{self.address}: the server went away in the middle of an answer; ask again")
            if reason in ("error", "length") and not said:
                remedy = "shorten the prompt, or serve with a larger --session-len"
                raise ServingError(f"{self.address}: the server gave no answer ({reason}); {remedy}")
        return None

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        parts = urlsplit(self.address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            port = parts.port
        except ValueError as error:
            raise ServingError(f"{self.address}: {error}; write http://HOST:PORT") from None
        if not parts.hostname:
            raise ServingError(f"{self.address}: is no address; write http://HOST:PORT")
        return kind(parts.hostname, port, timeout=timeout_s)

    def _ask(
        self, connection: http.client.HTTPConnection, verb: str, path: str, body: dict[str, Any] | None = None
    ) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        prefix = urlsplit(self.address).path
        try:
            connection.request(verb, prefix + path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise ServingError(f"{self.address}: no answer ({reason}); start one: turbopress serve MODEL") from error
        if response.status != 200:
            raise ServingError(f"{self.address}: {_refusal(response)}")
        return response


def _refusal(response: http.client.HTTPResponse) -> str:
    if response.status == 401:
        return f"the server wants a key, or another one; set {API_KEY}"
    text = response.read().decode("utf8", "replace")
    try:
        told = json.loads(text)
    except ValueError:
        told = {}
    error = told.get("error", told) if isinstance(told, dict) else {}
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return f"the server refused ({response.status}): {' '.join(str(message or text[:200]).split())}"


def _events(response: http.client.HTTPResponse, address: str) -> Iterator[dict[str, Any]]:
    """The values of a stream of server-sent events, up to [DONE]."""
    try:
        for line in response:
            data = line.decode("utf8").strip().removeprefix("data:").strip()
            if data == "[DONE]":
                yield {"choices": [{"finish_reason": "stop"}]}
                return
            if not data.startswith("{"):
                continue  # empty lines end an event; lines with a colon in front keep the connection awake
            event = json.loads(data)
            if "error" in event:
                message = event["error"].get("message") if isinstance(event["error"], dict) else event["error"]
                raise ServingError(f"{address}: the server broke off: {message}")
            yield event
    except (OSError, http.client.HTTPException) as error:
        raise ServingError(f"{address}: the server went away in the middle of an answer; ask again") from error


def _piece(choice: dict[str, Any]) -> str:
    """The text of one event, of a chat or of a completion."""
    return str((choice.get("delta") or {}).get("content") or choice.get("text") or "")
