"""A hub in a thread: enough of Hugging Face's and ModelScope's HTTP interfaces to download a tiny model, and a log of
what was asked.
"""

import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

from tiny import CONFIG

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORIES = {
    "org/tiny": {
        "config.json": b'{"model_type": "internlm2"}',
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"pickled weights",
        "tokenizer.model": b"pieces",
        "chat_template.jinja": b"{{ messages }}",
        "modeling_internlm2.py": b"raise SystemExit('remote code ran')",
        "onnx/config.json": b"{}",
        "README.md": b"# tiny",
    },
    "org/old": {"config.json": b"{}", "pytorch_model.bin": b"pickled weights", "configuration_internlm2.py": b"raise"},
    "org/empty": {"config.json": b"{}"},
    "org/shaped": {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"weights"},
}


class Hub(BaseHTTPRequestHandler):
    """Answers /api/models/…/tree and …/resolve (Hugging Face), /api/v1/models/…/repo (ModelScope)."""

    asked: list[str]

    def log_message(self, *_):
        """Keeps the test's output clean."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = urlsplit(self.path)
        self.asked.append(unquote(self.path))
        steps = unquote(parts.path).strip("/").split("/")
        if steps[:3] == ["api", "v1", "models"]:
            self.modelscope(REPOSITORIES.get("/".join(steps[3:5]), {}), steps[5:], parse_qs(parts.query))
        elif steps[:2] == ["api", "models"]:
            self.tree("/".join(steps[2:4]), steps[-1])
        elif "resolve" in steps:
            self.answer(REPOSITORIES["/".join(steps[:2])]["/".join(steps[4:])])
        else:
            self.answer(b"{}", 404)

    def tree(self, name, commit):
        files = REPOSITORIES.get(name)
        if name == "org/gated":
            self.answer(b"{}", 403, {"X-Error-Code": "GatedRepo"})
        elif files is None:
            self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        elif commit != COMMIT:
            self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        else:
            entries = [{"type": "file", "path": p, "size": len(c), "oid": digest(c)[:40]} for p, c in files.items()]
            self.answer(json.dumps(entries).encode())

    def modelscope(self, files, steps, query):
        if steps == ["repo", "files"]:
            entries = [{"Path": p, "Type": "blob", "Size": len(c), "Sha256": digest(c)} for p, c in files.items()]
            self.answer(json.dumps({"Code": 200, "Success": True, "Data": {"Files": entries}}).encode())
        else:
            self.answer(files[query["FilePath"][0]])

    def answer(self, body, status=200, headers=None):
        self.send_response(status)
        sent = {"Content-Length": str(len(body)), "ETag": digest(body)[:40], "X-Repo-Commit": COMMIT, **(headers or {})}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def digest(content):
    return hashlib.sha256(content).hexdigest()


@contextmanager
def hub():
    """Serves while the block runs; gives the address and the list of paths asked for, which grows."""
    handler = type("LoggingHub", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
