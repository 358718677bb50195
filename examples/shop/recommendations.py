"""Recommendations, the service of the shop that nobody has to wait for: what else is bought with what.

It listens on PORT and knows nothing of Seawall. When it is down, orders are shown without it.
"""

import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

RELATED = {
    "lamp": ["rope", "sextant", "anchor"],
    "rope": ["anchor", "lamp"],
    "anchor": ["rope", "lamp"],
    "sextant": ["lamp"],
}
NAMES = {"lamp": "Storm lamp", "rope": "Rope, 20 m", "anchor": "Anchor, 8 kg", "sextant": "Sextant, brass"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True

    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/healthz":
            return self.answer(200, {"ok": True})
        sku = url.path.removeprefix("/related/")
        if sku == url.path or sku not in RELATED:
            return self.answer(404, {"error": f"nothing is known of {url.path}"})
        limit = parse_qs(url.query).get("limit", ["10"])[0]
        related = RELATED[sku][: int(limit) if limit.isdigit() else 10]
        self.answer(200, {"for": sku, "items": [{"sku": other, "name": NAMES[other]} for other in related]})

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
