"""What clients do to a server, whatever engine runs it."""

import http.client
import json

from serving.engine import Sampling


def leave_in_the_middle(served, model, prompt, key, most_tokens):
    """A client goes while its answer is streamed; the server answers the next one."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    body = {"model": model, "prompt": prompt, "stream": True, "max_tokens": most_tokens}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    assert connection.getresponse().readline().startswith(b"data:")
    connection.close()
    assert "".join(served.client.complete(prompt, Sampling(max_tokens=4)))
    assert served.process.poll() is None
