"""Request smuggling: what a proxy hands on has to mean one thing to everybody.

The requests of `smuggling.json` are sent, byte for byte, to Seawall, nginx and HAProxy, each in front of a backend of its own that
records what it gets. A case has a tier: `compliant` is right by the RFCs, `acceptable` is odd or wrong but has one meaning,
`ambiguous` has several or none, `severe` is a known way to smuggle. Three things are checked:

1. Of an ambiguous or severe request nothing may be handed on, but for the clear requests before it (`before`). It is handed on as
   soon as a backend has got a whole request; a request that is broken off is none.
2. The bytes at Seawall's backend are read by five readers: a strict one, one that prefers Content-Length, one that prefers
   Transfer-Encoding, one to which a bare LF ends no line, and one that knows chunks by the word anywhere in the value. They have to
   see the same requests: how many, and of each the method, the target and the length of its body.
3. What Seawall hands on, nginx and HAProxy have to refuse or to read likewise, by the same four measures.

And all compliant requests have to arrive as they are written down in `requests`.
"""

import contextlib
import json
import re
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import hpack

from stage import DIR, HOST, Report, Stage, free_port

QUIET = 0.25
LIMIT = 3


class Broken(Exception):
    """No request can be read."""


def read_requests(stream, prefer="coding", bare=True, loose=False, strict=False):
    """The whole requests in some bytes, as `(method, target, length of the body)`, and the bytes that are left."""
    requests = []
    while stream:
        stripped = stream.lstrip(b"\r\n")
        if not stripped:
            break
        end = re.search(rb"\r?\n\r?\n" if bare else rb"\r\n\r\n", stripped)
        if not end:
            break
        lines = re.split(rb"\r?\n" if bare else rb"\r\n", stripped[: end.start()])
        body = stripped[end.end() :]
        words = lines[0].split()
        if len(words) != 3 or (strict and not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~]+ HTTP/1\.[01]", lines[0])):
            raise Broken(lines[0])
        lengths, codings = [], []
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if strict and (not colon or not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(rb"[\0\r\n]", value)):
                raise Broken(line)
            if name.strip().lower() == b"content-length":
                lengths.append(value.strip())
            if name.strip().lower() == b"transfer-encoding":
                codings.append(value.strip().lower())
        if strict and (len(lengths) + len(codings) > 1 or any(not value.isdigit() for value in lengths)):
            raise Broken(f"{lengths} {codings}")
        chunked = any(b"chunked" in coding for coding in codings) if loose else codings[-1:] == [b"chunked"]
        if strict and codings and codings != [b"chunked"]:
            raise Broken(codings)
        if chunked and not (prefer == "length" and lengths):
            length, rest = read_chunks(body)
        else:
            length = int(re.match(rb"\d*", lengths[-1])[0] or 0) if lengths else 0
            rest = body[length:] if len(body) >= length else None
        if rest is None:
            break
        target = re.sub(rb"^https?://[^/]*", b"", words[1]) or b"/"
        requests.append((words[0].decode("latin-1"), target.decode("latin-1"), length))
        stream = rest
    return requests, stream


def read_chunks(body):
    """The length of a body in chunks, and what is behind it; `None` when it does not end."""
    length = 0
    while True:
        line, found, body = body.partition(b"\r\n")
        if not found:
            return length, None
        size = re.match(rb"[0-9a-fA-F]+", line)
        if not size:
            raise Broken(line)
        size = int(size[0], 16)
        if size == 0:
            while True:
                line, found, body = body.partition(b"\r\n")
                if not found:
                    return length, None
                if not line:
                    return length, body
        if len(body) < size + 2:
            return length, None
        length, body = length + size, body[size + 2 :]


READERS = {
    "strict": {"strict": True, "bare": False},
    "by length": {"prefer": "length"},
    "by coding": {"prefer": "coding"},
    "by CRLF alone": {"bare": False},
    "loose coding": {"loose": True},
}


class Backend:
    """Records exactly what it gets; answers each whole request, so that its proxy goes on."""

    def __init__(self):
        self.port = free_port()
        self.got = {}
        self.lock = threading.Lock()
        listener = socket.create_server((HOST, self.port))
        threading.Thread(target=self.accept, args=(listener,), daemon=True).start()

    def accept(self, listener):
        while True:
            stream, peer = listener.accept()
            threading.Thread(target=self.serve, args=(stream, peer), daemon=True).start()

    def serve(self, stream, peer):
        rest = b""
        with stream, contextlib.suppress(OSError):
            while part := stream.recv(65536):
                with self.lock:
                    self.got[peer] = self.got.get(peer, b"") + part
                try:
                    requests, rest = read_requests(rest + part)
                except Broken:
                    stream.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    return
                stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" * len(requests))

    def take(self):
        """What has come since the last time: the bytes of each connection."""
        with self.lock:
            got, self.got = self.got, {}
        return list(got.values())


def seen(streams, **how):
    """The requests in the bytes of some connections."""
    requests = []
    for stream in streams:
        try:
            requests += read_requests(stream, **how)[0]
        except Broken as error:
            requests.append(("unreadable", str(error), 0))
    return sorted(requests)


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def http2_bytes(case):
    """A connection with one request, whose fields are sent as they are, right or not."""
    encoder = hpack.Encoder()

    def block(fields):
        return encoder.encode([(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields], huffman=False)

    data, trailers = case.get("data"), case.get("trailers")
    out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
    out += frame(1, 0x4 | (0x1 if data is None else 0), 1, block(case["http2"]))
    if data is not None:
        out += frame(0, 0 if trailers else 0x1, 1, data.encode("latin-1"))
    if trailers:
        out += frame(1, 0x5, 1, block(trailers))
    return out


def send(port, raw):
    """Sends bytes and waits until nothing comes any more; returns what came."""
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=QUIET) as stream:
        stream.sendall(raw)
        end = time.monotonic() + LIMIT
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < end and (part := stream.recv(65536)):
                answer += part
    return answer


class Proxy:
    def __init__(self, name, port, http2_port, backend):
        self.name, self.port, self.http2_port, self.backend = name, port, http2_port, backend
        self.streams = {}
        self.answers = {}

    def run(self, cases):
        for case in cases:
            self.backend.take()
            raw = http2_bytes(case) if "http2" in case else case["raw"].encode("latin-1")
            answer = send(self.http2_port if "http2" in case else self.port, raw)
            self.streams[case["name"]] = self.backend.take()
            self.answers[case["name"]] = [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3})", answer)]

    def requests(self, case, **how):
        return seen(self.streams[case["name"]], **how)


def nginx(stage, backend):
    port, http2_port = free_port(), free_port()
    (DIR / "nginx.conf").write_text(
        f"worker_processes 1; daemon off; pid {DIR}/nginx.pid; error_log {DIR}/nginx-error.log;\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log off; client_body_temp_path {DIR}; proxy_temp_path {DIR}; fastcgi_temp_path {DIR};\n"
        f"uwsgi_temp_path {DIR}; scgi_temp_path {DIR}; large_client_header_buffers 4 64k;\n"
        f"server {{ listen {HOST}:{port}; listen {HOST}:{http2_port} http2; location / {{\n"
        f"proxy_pass http://{HOST}:{backend.port}; proxy_http_version 1.1; proxy_request_buffering off;\n"
        'proxy_set_header Connection ""; proxy_set_header Host $http_host; } } }\n'
    )
    words = ["nginx", "-c", DIR / "nginx.conf", "-e", DIR / "nginx-error.log"]
    stage.child("nginx", words, port)
    return Proxy("nginx", port, http2_port, backend)


def haproxy(stage, backend):
    port, http2_port = free_port(), free_port()
    (DIR / "haproxy.cfg").write_text(
        "global\n    nbthread 1\ndefaults\n    mode http\n    timeout connect 1s\n    timeout client 5s\n    timeout server 5s\n"
        f"frontend f\n    bind {HOST}:{port}\n    bind {HOST}:{http2_port} proto h2\n    default_backend b\n"
        f"backend b\n    server s {HOST}:{backend.port}\n"
    )
    stage.child("haproxy", ["haproxy", "-db", "-f", DIR / "haproxy.cfg"], port)
    return Proxy("HAProxy", port, http2_port, backend)


def forwarded(proxy, case):
    """How many requests have been handed on that should not have been."""
    return max(0, len(proxy.requests(case)) - case.get("before", 0))


def main():
    report = Report()
    cases = json.loads((Path(__file__).parent / "smuggling.json").read_text())
    with Stage() as stage:
        backends = [Backend() for _ in range(3)]
        routes = "      - { id: all, match: { path: '/**' }, to: recorder }\n"
        gateways = stage.seawall({"recorder": [backends[0].port]}, routes=routes)
        ours = Proxy("Seawall", gateways.clear, gateways.clear, backends[0])
        others = [nginx(stage, backends[1]), haproxy(stage, backends[2])]
        threads = [threading.Thread(target=proxy.run, args=(cases,)) for proxy in (ours, *others)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        alive = gateways.clear_process.alive()
    record = [
        {"name": case["name"], "tier": case["tier"]}
        | {
            proxy.name: {"requests": proxy.requests(case), "answers": proxy.answers[case["name"]]}
            | {"bytes": [stream.decode("latin-1")[:400] for stream in proxy.streams[case["name"]]]}
            for proxy in (ours, *others)
        }
        for case in cases
    ]
    (DIR / "cases.json").write_text(json.dumps(record, indent=1))

    wrong = [case for case in cases if case["tier"] in ("ambiguous", "severe")]
    got = [case["name"] for case in wrong if forwarded(ours, case)]
    peers = "; ".join(f"{proxy.name} {sum(bool(forwarded(proxy, case)) for case in wrong)}" for proxy in others)
    listed(report, f"ambiguous requests handed on, of {len(wrong)} ({peers})", got)

    got = [case["name"] for case in cases if len({str(ours.requests(case, **how)) for how in READERS.values()}) > 1]
    listed(report, f"requests handed on that five readers see differently, of {len(cases)} cases", got)

    got = []
    for case in cases:
        for proxy in others:
            theirs, mine = proxy.requests(case), ours.requests(case)
            # Who refuses sees nothing, or only what comes before.
            if Counter(mine) - Counter(theirs) and Counter(theirs) - Counter(mine):
                got.append(f"{case['name']} ({proxy.name})")
    listed(report, "requests handed on that nginx or HAProxy reads otherwise", got)

    compliant = [case for case in cases if "requests" in case]
    missing = [case["name"] for case in compliant if ours.requests(case) != sorted(map(tuple, case["requests"]))]
    passed = f"{len(compliant) - len(missing)} of {len(compliant)}"
    report.row("requests with one meaning that arrive as they are", "all", "; ".join([passed, *missing]), not missing)
    report.row("the gateway afterwards", "alive", "alive" if alive else "dead", alive)


def listed(report, compared, names):
    result = f"{len(names)}: {', '.join(names)}" if names else "0"
    report.row(compared, 0, result, not names)


if __name__ == "__main__":
    main()
