"""Abuse over HTTP/1.1 and TLS: whoever sends too much, nothing, or nonsense gets the right status or is let go; the memory of the
gateway is bounded, and others are served meanwhile."""

import contextlib
import os
import random
import re
import socket
import threading
import time

import service
from bystander import Bystander
from stage import HOST, NAME, Report, Stage

# What abuse may cost, in megabytes.
GROWTH = 64
HEAD = f"GET /echo/ HTTP/1.1\r\nHost: {NAME}\r\n".encode()
# How long the gateway waits for a head, and for TLS, in seconds; with time to spare.
HEAD_LIMIT, TLS_LIMIT = 35, 15


def connect(port):
    return socket.create_connection((HOST, port), timeout=10)


def answer(stream, patience=10):
    """The status that comes, `closed` or `silence`."""
    stream.settimeout(patience)
    got = b""
    with contextlib.suppress(ConnectionError):
        try:
            while part := stream.recv(65536):
                got += part
                if b"\r\n\r\n" in got:
                    break
        except TimeoutError:
            return "silence"
    status = re.match(rb"HTTP/1\.[01] (\d+)", got)
    return int(status[1]) if status else "closed"


def flood(first, part, seconds=3, path=None):
    """Sends a part again and again until it is let go; returns what is answered."""

    def send(gateways):
        with connect(gateways.clear) as stream:
            stream.settimeout(seconds)
            end = time.monotonic() + seconds
            try:
                stream.sendall(first)
                while time.monotonic() < end:
                    stream.sendall(part)
            except TimeoutError:
                return "held back"
            except OSError:
                pass
            return answer(stream, 2)

    return send


def cases():
    """`(name, function, what has to come, how many at a time)`."""
    table = []

    def case(name, expected, times=8):
        def add(function):
            table.append((name, function, expected, times))

        return add

    field = b"X-Field: " + b"x" * 1000 + b"\r\n"
    table += [
        ("a head without an end", flood(HEAD, field), {431, "closed"}, 8),
        ("small fields without an end", flood(HEAD, b"a: b\r\n" * 500), {431, 400, "closed"}, 8),
        ("a field without an end", flood(HEAD + b"X-Field: ", b"x" * 8192), {431, "closed"}, 8),
        ("a target without an end", flood(b"GET /", b"x" * 8192), {414, 431, "closed"}, 8),
        ("a method without an end", flood(b"", b"X" * 8192), {400, 431, "closed"}, 8),
        ("empty lines without an end", flood(b"", b"\r\n" * 4096), {400, 431, "closed", "silence"}, 8),
    ]
    chunked = f"POST /slow/ HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    length = f"POST /slow/ HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 1000000000000\r\n\r\n".encode()
    table += [
        ("a body of a terabyte", flood(length, b"x" * 65536), {"held back", 200, 413, "closed", "silence"}, 8),
        ("chunks without an end", flood(chunked, b"1000\r\n" + b"x" * 4096 + b"\r\n"), {"held back", 200, "closed", "silence"}, 8),
        ("chunks of one byte", flood(chunked, b"1\r\nx\r\n" * 1000), {"held back", 200, "closed", "silence"}, 8),
        ("a chunk extension without an end", flood(chunked + b"1;", b"x" * 8192), {400, "closed"}, 8),
        ("trailers without an end", flood(chunked + b"0\r\n", b"x: y\r\n" * 1000), {400, "closed"}, 8),
    ]

    @case("requests whose answers nobody reads", {"held back", "closed", "silence", 200})
    def _(gateways):
        request = f"GET /large/ HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
        return flood(b"", request * 100)(gateways)

    @case("half-closed behind the request", {200, "closed"}, 100)
    def _(gateways):
        with connect(gateways.clear) as stream:
            stream.sendall(HEAD + b"\r\n")
            stream.shutdown(socket.SHUT_WR)
            return answer(stream)

    @case("half-closed within the head", {"closed", 400}, 100)
    def _(gateways):
        with connect(gateways.clear) as stream:
            stream.sendall(HEAD)
            stream.shutdown(socket.SHUT_WR)
            return answer(stream)

    @case("half-closed within the body", {"closed", 400, 502}, 50)
    def _(gateways):
        with connect(gateways.clear) as stream:
            stream.sendall(f"POST /echo/ HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 100\r\n\r\nhalf".encode())
            stream.shutdown(socket.SHUT_WR)
            return answer(stream)

    @case("reset within the body", {"reset"}, 100)
    def _(gateways):
        with connect(gateways.clear) as stream:
            stream.sendall(f"POST /echo/ HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 100\r\n\r\nhalf".encode())
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return "reset"

    @case("bytes at random", {400, "closed"}, 100)
    def _(gateways):
        with connect(gateways.clear) as stream:
            with contextlib.suppress(OSError):
                stream.sendall(random.randbytes(2000) + b"\r\n\r\n")
            return answer(stream, 5)

    @case("half a head, and then nothing", {"closed", 408}, 200)
    def _(gateways):
        with connect(gateways.clear) as stream:
            stream.sendall(HEAD)
            return answer(stream, HEAD_LIMIT)

    @case("nothing at all", {"closed", 408}, 200)
    def _(gateways):
        with connect(gateways.clear) as stream:
            return answer(stream, HEAD_LIMIT)

    @case("TLS: bytes at random", {"closed"}, 100)
    def _(gateways):
        with connect(gateways.tls) as stream:
            with contextlib.suppress(OSError):
                stream.sendall(random.randbytes(2000))
            return "closed" if answer(stream, TLS_LIMIT) == "closed" else "open"

    @case("TLS: clear text", {"closed"}, 100)
    def _(gateways):
        with connect(gateways.tls) as stream:
            stream.sendall(HEAD + b"\r\n")
            return answer(stream, TLS_LIMIT)

    @case("TLS: half a hello, and then nothing", {"closed"}, 200)
    def _(gateways):
        with connect(gateways.tls) as stream:
            stream.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20))
            return answer(stream, TLS_LIMIT)

    @case("TLS: nothing at all", {"closed"}, 200)
    def _(gateways):
        with connect(gateways.tls) as stream:
            return answer(stream, TLS_LIMIT)

    @case("TLS: records of nothing", {"closed", "silence"}, 8)
    def _(gateways):
        with connect(gateways.tls) as stream, contextlib.suppress(OSError):
            end = time.monotonic() + 3
            while time.monotonic() < end:
                stream.sendall(b"\x16\x03\x03\x00\x00" * 1000)
        return "closed"

    @case("TLS: shaken hands, and then bytes at random", {"closed"}, 50)
    def _(gateways):
        with gateways.secure() as stream:
            raw = socket.socket(fileno=os.dup(stream.fileno()))
            raw.sendall(random.randbytes(500))
            with raw:
                return answer(raw, 5)

    return table


def run(report, gateways, name, function, expected, times):
    secure = name.startswith("TLS")
    process = gateways.tls_process if secure else gateways.clear_process
    port, authority = (gateways.tls, gateways.authority) if secure else (gateways.clear, None)
    before = most = process.resident()
    outcomes = []

    def one():
        try:
            outcomes.append(function(gateways))
        except OSError as error:
            outcomes.append("closed" if isinstance(error, ConnectionError) else repr(error))

    with Bystander(port, authority) as others:
        threads = [threading.Thread(target=one, daemon=True) for _ in range(times)]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        end = began + HEAD_LIMIT + 10
        while (time.monotonic() < began + 1 or any(thread.is_alive() for thread in threads)) and time.monotonic() < end and process.alive():
            most = max(most, process.resident())
            time.sleep(0.02)
    growth = most - before
    came = sorted({str(outcome) for outcome in outcomes})
    ok = process.alive() and set(outcomes) <= expected and len(outcomes) == times and growth < GROWTH and others.fine()
    required = f"{' or '.join(sorted(map(str, expected)))}; under +{GROWTH} MB; others served"
    report.row(f"{name}, {times} at a time", required, f"{', '.join(came)}; +{growth:.0f} MB; {others}", ok)


def main():
    report = Report()
    with Stage() as stage:
        gateways = service.gateways(stage)
        for case in cases():
            run(report, gateways, *case)
    os._exit(0)


if __name__ == "__main__":
    main()
