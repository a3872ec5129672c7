"""A server of releases for tests: it takes the current one when it starts, and is well if that release says so.

python release_server.py MODELS PORT        (config.json of the release holds {"well": true})
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

RELEASE = (Path(sys.argv[1]) / "current").resolve()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        is_well = json.loads((RELEASE / "config.json").read_text()).get("well", False)
        self.send_response(200 if is_well else 503)
        self.end_headers()
        self.wfile.write(RELEASE.name.encode())

    def log_message(self, *_):
        pass


HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
