"""A hub in a thread that holds one data set of two configurations, as Hugging Face serves data sets."""

import io
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow
import pyarrow.parquet
from hub_server import COMMIT, digest

NAME = "org/wikitext"
ROWS = {"wikitext-103-raw-v1": ["a hundred"], "wikitext-2-raw-v1": [" = Robert = \n", " He acts . \n"]}


def _parquet(rows):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), buffer)
    return buffer.getvalue()


def _card():
    sections = [
        f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test-*\n" for name in ROWS
    ]  # fmt: skip
    return ("---\nconfigs:\n" + "".join(sections) + "---\n# WikiText\n").encode()


FILES = {"README.md": _card()} | {f"{name}/test-00000-of-00001.parquet": _parquet(rows) for name, rows in ROWS.items()}


class Hub(BaseHTTPRequestHandler):
    """Answers /api/datasets/… (information, tree, paths) and /datasets/…/resolve."""

    def log_message(self, *_):
        """Keeps the test's output clean."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        about, files = f"api/datasets/{NAME}", f"datasets/{NAME}/resolve/"
        if path.startswith(files) and (content := FILES.get(path.removeprefix(files).split("/", 1)[1])) is not None:
            self.answer(content)
        elif path.startswith(f"{about}/tree/"):
            self.answer_json(children(path.removeprefix(f"{about}/tree/").partition("/")[2]))
        elif path == about or path.startswith(f"{about}/revision/"):
            listed = [{"rfilename": name} for name in FILES]
            self.answer_json({"id": NAME, "sha": COMMIT, "siblings": listed, "tags": []})
        else:
            self.answer_json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        self.answer_json([entry(name) for name in FILES if name in wanted])

    def answer_json(self, value, status=200, headers=None):
        self.answer(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def answer(self, body, status=200, headers=None):
        self.send_response(status)
        sent = {"Content-Length": str(len(body)), "ETag": f'"{digest(body)[:40]}"', "X-Repo-Commit": COMMIT}
        for name, value in (sent | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def entry(name):
    return {"type": "file", "path": name, "size": len(FILES[name]), "oid": digest(FILES[name])[:40]}


def children(folder):
    """What lies in a folder of the data set, folders among it."""
    prefix = f"{folder}/" if folder else ""
    inside = [name for name in FILES if name.startswith(prefix)]
    folders = sorted({prefix + name.removeprefix(prefix).split("/")[0] for name in inside} - FILES.keys())
    return [entry(name) for name in inside if "/" not in name.removeprefix(prefix)] + [
        {"type": "directory", "path": name, "oid": digest(name.encode())[:40], "size": 0} for name in folders
    ]


@contextmanager
def data_set_hub():
    """Its address, while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
