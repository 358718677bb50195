"""HTTP/2 at the level of frames: what RFC 9113 demands of wrong ones, and what abuse may cost.

Every case speaks raw frames to the gateway, in clear text. Wrong frames have to be answered with the error that the RFC names, or
a stricter one, or by closing the connection. Abuse may do as it likes as long as it is bounded: the memory of the gateway may grow
by so much and no more, and others are served meanwhile.
"""

import contextlib
import os
import re
import socket
import struct
import subprocess
import threading
import time

import hpack

import service
from bystander import PATIENCE, Bystander
from stage import HOST, NAME, Report, Stage

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY, ACK = 0x1, 0x4, 0x8, 0x20, 0x1
NO_ERROR, PROTOCOL, INTERNAL, FLOW, SETTINGS_TIMEOUT, CLOSED, SIZE, REFUSED, CANCEL, COMPRESSION, CONNECT, CALM = range(12)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# The h2 crate, which hyper speaks HTTP/2 with, drops these without a word; they reach nobody.
KNOWN = {"a pseudo-field in the trailers"}
# It says PROTOCOL_ERROR of a frame that it cannot read, whichever way.
EXACT = 72
# What abuse may cost, in megabytes.
GROWTH = 64


def frame(kind, flags=0, stream=0, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


class Connection:
    """A connection whose every frame is ours to choose."""

    def __init__(self, port, settings=b"", preface=PREFACE, window=None):
        self.socket = socket.create_connection((HOST, port), timeout=5)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.rest = b""
        self.ended = False
        if window is not None:
            settings += struct.pack("!HI", 4, window)
        self.send(preface + frame(SETTINGS, 0, 0, settings))

    def send(self, data):
        try:
            self.socket.sendall(data)
        except OSError:
            self.ended = True

    def block(self, *more, method="GET", path="/echo/", pseudo=None):
        fields = pseudo or [(":method", method), (":scheme", "http"), (":authority", NAME), (":path", path)]
        return self.encoder.encode([*fields, *more], huffman=False)

    def request(self, stream, *more, flags=END_STREAM | END_HEADERS, **how):
        self.send(frame(HEADERS, flags, stream, self.block(*more, **how)))

    def frames(self, patience=3.0):
        """What comes, until nothing does any more: `(kind, flags, stream, payload)`."""
        self.socket.settimeout(patience)
        while True:
            while len(self.rest) >= 9:
                length = int.from_bytes(self.rest[:3], "big")
                if len(self.rest) < 9 + length:
                    break
                head, payload = self.rest[:9], self.rest[9 : 9 + length]
                self.rest = self.rest[9 + length :]
                yield head[3], head[4], int.from_bytes(head[5:9], "big") & 0x7FFFFFFF, payload
            try:
                part = self.socket.recv(65536)
            except TimeoutError:
                return
            except OSError:
                part = b""
            if not part:
                self.ended = True
                return
            self.rest += part

    def outcome(self, stream=None, patience=3.0):
        """What the peer says of a stream, or of the whole connection: an answer's status, an error, or the end."""
        for kind, flags, at, payload in self.frames(patience):
            if kind == GOAWAY:
                return ("goaway", int.from_bytes(payload[4:8], "big"))
            if kind == RST and (stream is None or at == stream):
                return ("reset", int.from_bytes(payload[:4], "big"))
            if kind == HEADERS and (stream is None or at == stream):
                fields = dict(self.decoder.decode(payload))
                return ("answer", int(fields[":status"]))
            if kind == PING and flags & ACK and stream is None:
                return ("ping", payload)
        return ("end", None) if self.ended else ("silence", None)

    def close(self):
        self.socket.close()


def connection_error(*codes):
    def check(outcome):
        return outcome[0] == "end" or (outcome[0] == "goaway" and outcome[1] in codes)

    return check


def stream_error(*codes):
    """A stream's error may be taken for one of the connection (RFC 9113, 5.4.2), or be answered with 400 or so."""

    def check(outcome):
        kind, value = outcome
        return kind == "end" or (kind in ("goaway", "reset") and value in codes) or (kind == "answer" and 400 <= value < 500)

    return check


def answered(status=200):
    return lambda outcome: outcome == ("answer", status)


def pong(outcome):
    return outcome[0] == "ping"


def cases():
    """The sections of RFC 9113: `(section, what is sent, how, what has to come)`; `how` returns the stream to look at."""
    table = []

    def case(section, name, expected, **how):
        def add(send):
            table.append((section, name, send, expected, how))

        return add

    def raw(section, name, expected, *frames, stream=None):
        @case(section, name, expected)
        def _(connection):
            for each in frames:
                connection.send(each)
            return stream

    def fields(section, name, expected, *more, **how):
        @case(section, name, expected)
        def _(connection):
            connection.request(1, *more, **how)
            return 1

    ping = frame(PING, 0, 0, b"12345678")

    @case("3.4", "a request", answered())
    def _(c):
        c.request(1)
        return 1

    raw("3.4", "a wrong preface", connection_error(PROTOCOL))
    table[-1] = (*table[-1][:4], {"preface": b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"})
    raw("4.1", "a frame of an unknown kind", pong, frame(0x42, 0, 0, b"x"), ping)
    raw("4.1", "flags that nobody knows", pong, frame(PING, 0xFE & ~ACK, 0, b"12345678"))
    raw("4.1", "a reserved bit that is set", pong, frame(PING, 0, 0x80000000, b"12345678"))

    @case("4.2", "a DATA frame that is too large", connection_error(SIZE))
    def _(c):
        c.request(1, flags=END_HEADERS, method="POST")
        c.send(frame(DATA, END_STREAM, 1, b"x" * 16385))

    raw("4.2", "a HEADERS frame that is too large", connection_error(SIZE), frame(HEADERS, 5, 1, b"x" * 16385))
    raw("4.3", "a header block that is none", connection_error(COMPRESSION), frame(HEADERS, 5, 1, b"\xff\xff\xff\xff\xff\xff\xff"))
    raw("4.3", "an index that is not in the table", connection_error(COMPRESSION), frame(HEADERS, 5, 1, b"\xc6"))
    raw("4.3", "a table size above what is allowed", connection_error(COMPRESSION), frame(HEADERS, 5, 1, b"\x3f\xe1\xff\x03"))

    @case("4.3", "another frame within a header block", connection_error(PROTOCOL))
    def _(c):
        c.send(frame(HEADERS, END_STREAM, 1, c.block()) + ping)

    @case("4.3", "another stream within a header block", connection_error(PROTOCOL))
    def _(c):
        block = c.block()
        c.send(frame(HEADERS, END_STREAM, 1, block[:3]) + frame(CONTINUATION, END_HEADERS, 3, block[3:]))

    raw("5.1", "DATA on a stream that is idle", connection_error(PROTOCOL, CLOSED), frame(DATA, 1, 1, b"x"))
    raw("5.1", "RST_STREAM on a stream that is idle", connection_error(PROTOCOL), frame(RST, 0, 1, bytes(4)))
    raw("5.1", "WINDOW_UPDATE on a stream that is idle", connection_error(PROTOCOL), frame(WINDOW, 0, 1, struct.pack("!I", 1)))
    raw("5.1", "CONTINUATION on a stream that is idle", connection_error(PROTOCOL), frame(CONTINUATION, 4, 1, b""))

    @case("5.1", "DATA on a stream that is half closed", stream_error(CLOSED, PROTOCOL))
    def _(c):
        c.request(1, path="/slow/")
        c.send(frame(DATA, END_STREAM, 1, b"x"))
        return 1

    @case("5.1", "HEADERS on a stream that is half closed", stream_error(CLOSED, PROTOCOL))
    def _(c):
        c.request(1, path="/slow/")
        c.request(1)
        return 1

    @case("5.1", "DATA on a stream that is closed", stream_error(CLOSED, PROTOCOL))
    def _(c):
        c.request(1)
        list(c.frames(0.3))
        c.send(frame(DATA, END_STREAM, 1, b"x"))

    @case("5.1", "HEADERS on a stream that is closed", connection_error(CLOSED, PROTOCOL))
    def _(c):
        c.request(1)
        list(c.frames(0.3))
        c.request(1)

    raw("5.1.1", "a stream of an even number", connection_error(PROTOCOL), frame(HEADERS, 5, 2, b"\x82\x86\x84"))

    @case("5.1.1", "a stream below the last one", connection_error(PROTOCOL, CLOSED))
    def _(c):
        c.request(5)
        list(c.frames(0.3))
        c.request(3)

    @case("5.1.2", "more streams than are allowed", stream_error(REFUSED, PROTOCOL, CALM))
    def _(c):
        for number in range(200):
            c.request(1 + 2 * number, path="/slow/")

    raw("5.5", "an unknown frame within a header block", connection_error(PROTOCOL),
        frame(HEADERS, END_STREAM, 1, b"\x82\x86"), frame(0x42, 0, 0, b"x"))
    raw("6.1", "DATA on stream 0", connection_error(PROTOCOL), frame(DATA, 1, 0, b"x"))

    @case("6.1", "DATA with more padding than it is long", connection_error(PROTOCOL))
    def _(c):
        c.request(1, flags=END_HEADERS, method="POST")
        c.send(frame(DATA, END_STREAM | PADDED, 1, b"\x06hello"))

    @case("6.1", "DATA with padding", answered())
    def _(c):
        c.request(1, flags=END_HEADERS, method="POST")
        c.send(frame(DATA, END_STREAM | PADDED, 1, b"\x02hello\0\0"))
        return 1

    raw("6.2", "HEADERS on stream 0", connection_error(PROTOCOL), frame(HEADERS, 5, 0, b"\x82\x86\x84"))
    raw("6.2", "HEADERS with more padding than it is long", connection_error(PROTOCOL), frame(HEADERS, 5 | PADDED, 1, b"\x20\x82"))
    raw("6.3", "PRIORITY on stream 0", connection_error(PROTOCOL), frame(PRIORITY, 0, 0, bytes(5)))
    raw("6.3", "PRIORITY of a wrong length", stream_error(SIZE, PROTOCOL), frame(PRIORITY, 0, 1, bytes(4)))
    raw("6.3", "PRIORITY", pong, frame(PRIORITY, 0, 1, struct.pack("!IB", 0, 16)), ping)
    raw("6.4", "RST_STREAM on stream 0", connection_error(PROTOCOL), frame(RST, 0, 0, bytes(4)))

    @case("6.4", "RST_STREAM of a wrong length", connection_error(SIZE))
    def _(c):
        c.request(1, path="/slow/")
        c.send(frame(RST, 0, 1, bytes(3)))

    raw("6.5", "SETTINGS on a stream", connection_error(PROTOCOL), frame(SETTINGS, 0, 1))
    raw("6.5", "SETTINGS of a wrong length", connection_error(SIZE), frame(SETTINGS, 0, 0, bytes(5)))
    raw("6.5", "an acknowledgement with a payload", connection_error(SIZE), frame(SETTINGS, ACK, 0, bytes(6)))
    raw("6.5.2", "a push that is neither on nor off", connection_error(PROTOCOL), frame(SETTINGS, 0, 0, struct.pack("!HI", 2, 2)))
    raw("6.5.2", "a window that is too large", connection_error(FLOW), frame(SETTINGS, 0, 0, struct.pack("!HI", 4, 1 << 31)))
    raw("6.5.2", "a frame size that is too small", connection_error(PROTOCOL), frame(SETTINGS, 0, 0, struct.pack("!HI", 5, 16383)))
    raw("6.5.2", "a frame size that is too large", connection_error(PROTOCOL), frame(SETTINGS, 0, 0, struct.pack("!HI", 5, 1 << 24)))
    raw("6.5.2", "a setting that nobody knows", pong, frame(SETTINGS, 0, 0, struct.pack("!HI", 0xF0, 1)), ping)
    raw("6.6", "a promise of a client", connection_error(PROTOCOL), frame(PUSH, 4, 1, bytes(4)))
    raw("6.7", "PING", pong, ping)
    raw("6.7", "PING on a stream", connection_error(PROTOCOL), frame(PING, 0, 1, bytes(8)))
    raw("6.7", "PING of a wrong length", connection_error(SIZE), frame(PING, 0, 0, bytes(6)))
    raw("6.8", "GOAWAY on a stream", connection_error(PROTOCOL), frame(GOAWAY, 0, 1, bytes(8)))
    raw("6.9", "WINDOW_UPDATE by 0", connection_error(PROTOCOL), frame(WINDOW, 0, 0, bytes(4)))
    raw("6.9", "WINDOW_UPDATE of a wrong length", connection_error(SIZE), frame(WINDOW, 0, 0, bytes(3)))

    @case("6.9", "WINDOW_UPDATE by 0 on a stream", stream_error(PROTOCOL))
    def _(c):
        c.request(1, path="/slow/")
        c.send(frame(WINDOW, 0, 1, bytes(4)))
        return 1

    most = struct.pack("!I", 0x7FFFFFFF)
    raw("6.9.1", "the connection's window overflows", connection_error(FLOW), frame(WINDOW, 0, 0, most), frame(WINDOW, 0, 0, most))

    @case("6.9.1", "a stream's window overflows", stream_error(FLOW))
    def _(c):
        c.request(1, path="/slow/")
        c.send(frame(WINDOW, 0, 1, most) * 2)
        return 1

    @case("6.9.2", "a window of nothing holds the body back", lambda outcome: outcome == ("silence", None))
    def _(c):
        c.request(1)
        body = [payload for kind, _, _, payload in c.frames(0.5) if kind == DATA]
        assert not any(body), "it sent what it was not allowed to"

    table[-1] = (*table[-1][:4], {"window": 0})
    raw("6.10", "CONTINUATION on stream 0", connection_error(PROTOCOL), frame(CONTINUATION, 4, 0, b""))

    @case("6.10", "a header block in parts", answered())
    def _(c):
        block = c.block()
        c.send(frame(HEADERS, END_STREAM, 1, block[:1]) + frame(CONTINUATION, 0, 1, block[1:2]) + frame(CONTINUATION, 4, 1, block[2:]))
        return 1

    @case("6.10", "CONTINUATION behind a block that has ended", connection_error(PROTOCOL))
    def _(c):
        c.request(1, path="/slow/")
        c.send(frame(CONTINUATION, 4, 1, b""))

    wrong = stream_error(PROTOCOL)
    base = [(":method", "GET"), (":scheme", "http"), (":authority", NAME), (":path", "/echo/")]
    fields("8.1", "a field name in capitals", wrong, ("X-Mine", "1"))

    @case("8.1", "a pseudo-field in the trailers", wrong)
    def _(c):
        c.request(1, flags=END_HEADERS, method="POST")
        c.send(frame(DATA, 0, 1, b"x") + frame(HEADERS, 5, 1, c.encoder.encode([(":path", "/")])))
        return 1

    @case("8.1", "trailers that do not end the stream", wrong)
    def _(c):
        c.request(1, flags=END_HEADERS, method="POST")
        c.send(frame(DATA, 0, 1, b"x") + frame(HEADERS, END_HEADERS, 1, c.encoder.encode([("x", "y")])))
        return 1

    fields("8.2.1", "a field value with a line feed", wrong, ("x-mine", "1\nx: y"))
    for name, value in (("connection", "close"), ("keep-alive", "1"), ("proxy-connection", "close"), ("transfer-encoding", "chunked"),
                        ("upgrade", "websocket"), ("te", "gzip")):
        fields("8.2.2", f"{name}: {value}", wrong, (name, value))
    fields("8.2.2", "te: trailers", answered(), ("te", "trailers"))
    fields("8.2.3", "cookies in several fields", answered(), ("cookie", "a=1"), ("cookie", "b=2"))
    fields("8.3", "a pseudo-field that nobody knows", wrong, pseudo=[*base, (":mine", "1")])
    fields("8.3", "a pseudo-field behind a field", wrong, pseudo=[("x", "y"), *base])
    fields("8.3", "a pseudo-field of answers", wrong, pseudo=[*base, (":status", "200")])
    fields("8.3.1", "two methods", wrong, pseudo=[*base, (":method", "GET")])
    fields("8.3.1", "two paths", wrong, pseudo=[*base, (":path", "/")])
    fields("8.3.1", "two schemes", wrong, pseudo=[*base, (":scheme", "http")])
    fields("8.3.1", "no method", wrong, pseudo=base[1:])
    fields("8.3.1", "no scheme", wrong, pseudo=[base[0], *base[2:]])
    fields("8.3.1", "no path", wrong, pseudo=base[:3])
    fields("8.3.1", "an empty path", wrong, pseudo=[*base[:3], (":path", "")])
    fields("8.3.1", "a host that is not the authority", wrong, ("host", "other.test"))

    def length(name, value, *parts):
        @case("8.1.1", name, wrong)
        def _(c):
            c.request(1, ("content-length", value), flags=END_HEADERS, method="POST")
            for at, part in enumerate(parts):
                c.send(frame(DATA, END_STREAM if at == len(parts) - 1 else 0, 1, part))
            return 1

    length("a length that is more than the data", "6", b"hello")
    length("a length that is less than the data", "4", b"hello")
    length("a length that is less than the data in parts", "7", b"hello", b"hello")
    return table


def run_cases(report, port):
    """Two rows: whether what is wrong is refused at all, and whether with the very error that the RFC names."""
    accepted, inexact, table = [], [], cases()
    for section, name, send, expected, how in table:
        connection = Connection(port, **how)
        try:
            outcome = connection.outcome(send(connection), 2.0)
        except Exception as error:
            outcome = ("broken", repr(error))
        finally:
            connection.close()
        good = expected(outcome)
        refused = outcome[0] in ("goaway", "reset") and not expected(("answer", 200))
        print(f"  {'passed' if good else 'FAILED'}: {section} {name}: {outcome}", flush=True)
        if not good:
            told = f"{section} {name} ({outcome[0]} {outcome[1]})"
            (inexact if refused else accepted).append((name, told))
    told = [told for _, told in accepted]
    passed = f"{len(table) - len(accepted)} of {len(table)}"
    unknown = {name for name, _ in accepted} - KNOWN
    report.row("RFC 9113: right is answered, wrong refused", f"all but {', '.join(KNOWN)}", "; ".join([passed, *told]), not unknown)
    exact = len(table) - len(accepted) - len(inexact)
    result = "; ".join([f"{exact} of {len(table)}", *(told for _, told in inexact)])
    report.row("RFC 9113: with the very error that it names", f"at least {EXACT}", result, exact >= EXACT)


def attacks():
    """`(name, function)`; each abuses a connection until it is let go, or for a few seconds."""
    table = []

    def attack(name, **how):
        def add(function):
            table.append((name, function, how))

        return add

    @attack("rapid reset")
    def _(c, end):
        stream = 1
        while not c.ended and time.monotonic() < end:
            block = c.block(path="/slow/")
            burst = b"".join(
                frame(HEADERS, 5, stream + 2 * n, block if n == 0 else c.block(path="/slow/"))
                + frame(RST, 0, stream + 2 * n, struct.pack("!I", CANCEL))
                for n in range(100)
            )
            stream += 200
            c.send(burst)

    @attack("resets that the gateway is made to send")
    def _(c, end):
        stream = 1
        while not c.ended and time.monotonic() < end:
            c.request(stream, path="/slow/")
            c.send(frame(WINDOW, 0, stream, bytes(4)))
            stream += 2

    @attack("CONTINUATION without an end")
    def _(c, end):
        c.send(frame(HEADERS, END_STREAM, 1, c.block()))
        part = b"\x00\x01x" + b"\x7f\x81\x3f" + b"y" * 8192
        while not c.ended and time.monotonic() < end:
            c.send(frame(CONTINUATION, 0, 1, part))

    @attack("empty CONTINUATION without an end")
    def _(c, end):
        c.send(frame(HEADERS, END_STREAM, 1, c.block()))
        while not c.ended and time.monotonic() < end:
            c.send(frame(CONTINUATION, 0, 1) * 1000)

    @attack("PING without reading the answers")
    def _(c, end):
        while not c.ended and time.monotonic() < end:
            c.send(frame(PING, 0, 0, b"12345678") * 1000)

    @attack("SETTINGS without reading the answers")
    def _(c, end):
        while not c.ended and time.monotonic() < end:
            c.send(frame(SETTINGS, 0, 0, struct.pack("!HI", 3, 100)) * 1000)

    @attack("PRIORITY without an end")
    def _(c, end):
        number = 1
        while not c.ended and time.monotonic() < end:
            c.send(b"".join(frame(PRIORITY, 0, number + 2 * n, struct.pack("!IB", 0, 1)) for n in range(1000)))
            number = (number + 2000) % 0x7FFFFFFF | 1

    @attack("empty DATA without an end")
    def _(c, end):
        c.request(1, flags=END_HEADERS, method="POST", path="/slow/")
        while not c.ended and time.monotonic() < end:
            c.send(frame(DATA, 0, 1) * 1000)

    @attack("a window of nothing on every stream", window=0)
    def _(c, end):
        for number in range(128):
            c.request(1 + 2 * number, path="/large/")
        while not c.ended and time.monotonic() < end:
            time.sleep(0.2)
            c.send(frame(PING, 0, 0, bytes(8)))

    @attack("large answers that nobody reads")
    def _(c, end):
        c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        c.send(frame(WINDOW, 0, 0, struct.pack("!I", 0x7FFF0000)))
        for number in range(128):
            c.request(1 + 2 * number, path="/large/")
            c.send(frame(WINDOW, 0, 1 + 2 * number, struct.pack("!I", 0x7FFF0000)))
        while not c.ended and time.monotonic() < end:
            time.sleep(0.2)

    @attack("a header block that unpacks to megabytes")
    def _(c, end):
        stream = 1
        c.send(frame(HEADERS, 5, stream, c.block() + b"\x40\x01x\x7f\x81\x1e" + b"y" * 3968))
        while not c.ended and time.monotonic() < end:
            stream += 2
            # One byte each, that stands for the large field.
            c.send(frame(HEADERS, 5, stream, c.block() + b"\xbe" * 16000))

    @attack("many small fields")
    def _(c, end):
        stream = 1
        while not c.ended and time.monotonic() < end:
            c.send(frame(HEADERS, 5, stream, c.block() + b"\x00\x01a\x01b" * 3000))
            stream += 2

    @attack("bodies that the service does not take")
    def _(c, end):
        for number in range(100):
            c.request(1 + 2 * number, flags=END_HEADERS, method="POST", path="/slow/")
        number = 0
        while not c.ended and time.monotonic() < end:
            c.send(frame(DATA, 0, 1 + 2 * (number % 100), b"x" * 16384))
            number += 1
            if number > 2000:
                return

    @attack("window updates by one byte each", window=1)
    def _(c, end):
        c.request(1, path="/large/")
        while not c.ended and time.monotonic() < end:
            c.send(frame(WINDOW, 0, 1, struct.pack("!I", 1)) * 200)

    return table


def run_attacks(report, gateways):
    process = gateways.clear_process
    for name, function, how in attacks():
        most = before = process.resident()
        spent = process.processor_time()
        with Bystander(gateways.clear) as others:
            began = time.monotonic()
            end = began + 4
            connections = [Connection(gateways.clear, **how) for _ in range(4)]
            threads = [threading.Thread(target=function, args=(c, end), daemon=True) for c in connections]
            if "nobody reads" not in name and "without reading" not in name:
                threads += [threading.Thread(target=drain_until, args=(c, end), daemon=True) for c in connections]
            for thread in threads:
                thread.start()
            while time.monotonic() < began + 1 or (any(thread.is_alive() for thread in threads) and time.monotonic() < end + 3):
                if not process.alive():
                    break
                most = max(most, process.resident())
                time.sleep(0.02)
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)
                connection.close()
        growth, spent = most - before, process.processor_time() - spent
        ok = process.alive() and growth < GROWTH and others.fine()
        result = f"+{growth:.0f} MB, {spent:.1f} s of CPU; {others}"
        report.row(f"abuse: {name}", f"under +{GROWTH} MB, others served within {PATIENCE:.0f} s", result, ok)


def drain_until(connection, end):
    while not connection.ended and time.monotonic() < end:
        try:
            if not connection.socket.recv(65536):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    connection.ended = True


def h2load(report, url, what):
    words = ["h2load", "-n", "5000", "-c", "10", "-m", "50", "-t", "1", url]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    requests = re.search(r"requests: (\d+) total, .* (\d+) succeeded", done.stdout)
    good = re.search(r"status codes: (\d+) 2xx", done.stdout)
    result = f"{good[1]} of {requests[1]}" if requests and good else done.stdout[-200:] + done.stderr[-200:]
    report.row(f"h2load of nghttp2, {what}: answers with 2xx", "5000 of 5000", result, result == "5000 of 5000")


def main():
    report = Report()
    with Stage() as stage:
        routes = "      - { id: root, match: { path: '/' }, to: echo }\n"
        gateways = service.gateways(stage, routes=routes)
        run_cases(report, gateways.clear)
        h2load(report, f"http://{HOST}:{gateways.clear}/echo/", "in clear text")
        h2load(report, f"https://{HOST}:{gateways.tls}/echo/", "with TLS")
        run_attacks(report, gateways)
        alive = gateways.clear_process.alive()
        report.row("the gateway afterwards", "alive", "alive" if alive else "dead", alive)
    # Threads that still speak to closed sockets are of no interest.
    os._exit(0)


if __name__ == "__main__":
    main()
