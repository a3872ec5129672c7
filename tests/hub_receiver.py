"""A hub in a thread that takes commits: the requests of huggingface_hub's own client, answered as a hub does."""

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Receiver(BaseHTTPRequestHandler):
    """Repositories, small files in the commit's own body, large ones by LFS."""

    repositories: dict
    blobs: dict
    refuse_card = False

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.answer({"sha": "0" * 40, "id": "x", "siblings": []})

    def do_POST(self):
        content, path = self.body(), self.path.split("?")[0]
        if path == "/api/repos/create":
            said = json.loads(content)
            name = f"{said['organization']}/{said['name']}"
            self.repositories.setdefault(
                name, {"private": said.get("visibility") == "private" or said.get("private"), "files": {}}
            )
            self.answer({"url": f"{self.server.address}/{name}"})
        elif path == "/api/validate-yaml":
            errors = [{"message": "the card is refused"}] if self.refuse_card else []
            self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)
        elif "/preupload/" in path:
            files = json.loads(content)["files"]
            self.answer({"files": [self.mode(file) for file in files]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(content)["objects"]
            self.answer({"transfer": "basic", "objects": [self.upload(entry) for entry in objects]})
        elif "/commit/" in path:
            self.commit("/".join(path.split("/")[3:5]), content)
        else:
            self.answer({}, 200)

    def mode(self, file):
        is_large = file["path"].endswith("safetensors")
        return {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}

    def upload(self, entry):
        place = f"{self.server.address}/blobs/{entry['oid']}"
        return entry | {"authenticated": True, "actions": {"upload": {"href": place}}}

    def do_PUT(self):
        content = self.body()
        self.blobs[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def commit(self, name, content):
        files = self.repositories[name]["files"]
        for line in content.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                files[entry["value"]["path"]] = self.blobs[entry["value"]["oid"]]
        commit = {"commitUrl": f"{self.server.address}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40}
        self.answer(commit)


@contextmanager
def receiver():
    """A hub on loopback; `.repositories` is what it took."""

    class Mine(Receiver):
        repositories, blobs = {}, {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.address, Mine
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
