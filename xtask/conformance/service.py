"""A service of HTTP/1.1 to stand behind the gateway: answers at once, after a while (`/slow`), or with much (`/large`)."""

import contextlib
import http.server
import sys
import time

from stage import HOST, free_port

SLOW = 4
SMALL = b"x" * 1000
LARGE = b"x" * (8 * 1024 * 1024)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        if self.path.startswith("/slow"):
            time.sleep(SLOW)
        with contextlib.suppress(OSError, ValueError):
            self.read_body()
            body = LARGE if self.path.startswith("/large") else SMALL
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    do_GET = do_POST = answer

    def read_body(self):
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                self.rfile.read(size + 2)
            while self.rfile.readline().strip():
                pass
        left = int(self.headers.get("content-length", 0))
        while left > 0:
            left -= len(self.rfile.read(min(left, 65536))) or left

    def log_message(self, *_):
        """Nobody reads it."""


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request, client_address):
        """A gateway that closes its connections is no mistake of the service."""


def gateways(stage, **how):
    """Gateways in front of two such services, so that those who mean well do not wait for a service that is abused: `/echo/` is one's,
    `/slow/` and `/large/` the other's."""
    ports = {name: free_port() for name in ("echo", "target")}
    for name, port in ports.items():
        stage.child(name, [sys.executable, "-B", __file__, port], port)
    paths = "".join(f"      - {{ id: to-{name}, match: {{ path: '/{name}/**' }}, to: target }}\n" for name in ("slow", "large"))
    how["routes"] = paths + how.get("routes", "")
    return stage.seawall({name: [port] for name, port in ports.items()}, **how)


if __name__ == "__main__":
    Server((HOST, int(sys.argv[1])), Handler).serve_forever()
