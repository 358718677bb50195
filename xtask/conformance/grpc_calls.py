"""gRPC by grpcio, client and server, through the gateway: what a call is has to arrive as it was sent."""

import os
import threading
import time
from concurrent import futures

import grpc

from stage import HOST, NAME, Report, Stage, free_port

SERVICE = "conformance.Echo"
LARGE = 3 * 1024 * 1024
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]

cancelled = threading.Event()


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    if request == b"metadata":
        context.send_initial_metadata((("x-initial", metadata["x-mine"]), ("x-bytes-bin", metadata["x-mine-bin"])))
        context.set_trailing_metadata((("x-trailing", "end"), ("x-trailing-bin", b"\x00\xff")))
    elif request == b"fail":
        context.set_trailing_metadata((("x-why", "asked for"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: 100% \u00e4")
    elif request.startswith(b"status "):
        context.abort(list(grpc.StatusCode)[int(request[7:])], "as asked")
    elif request == b"raise":
        raise RuntimeError("a bug of the service")
    elif request == b"time left":
        return str(context.time_remaining()).encode()
    elif request == b"sleep":
        context.add_callback(cancelled.set)
        for _ in range(500):
            if not context.is_active():
                break
            time.sleep(0.02)
    return request


def server_stream(request, context):
    count, size = map(int, request.split())
    for number in range(count):
        yield number.to_bytes(4, "big") + b"x" * size


def endless(request, context):
    context.add_callback(cancelled.set)
    while context.is_active():
        yield b"tick"
        time.sleep(0.01)


def client_stream(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def bidirectional(requests, context):
    for request in requests:
        if request == b"break off":
            context.abort(grpc.StatusCode.ABORTED, "half way")
        yield request


def serve(port):
    server = grpc.server(futures.ThreadPoolExecutor(32), options=OPTIONS)
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "Endless": grpc.unary_stream_rpc_method_handler(endless),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "Bidirectional": grpc.stream_stream_rpc_method_handler(bidirectional),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    return server


class Calls:
    """The calls of one channel, and what is expected of them."""

    def __init__(self, channel):
        method = f"/{SERVICE}/"
        self.unary = channel.unary_unary(method + "Unary")
        self.server_stream = channel.unary_stream(method + "ServerStream")
        self.endless = channel.unary_stream(method + "Endless")
        self.client_stream = channel.stream_unary(method + "ClientStream")
        self.bidirectional = channel.stream_stream(method + "Bidirectional")
        self.unknown_method = channel.unary_unary(method + "Nothing")
        self.unknown_service = channel.unary_unary("/conformance.Nothing/Unary")
        self.gone = channel.unary_unary("/conformance.Gone/Unary")

    def cases(self):
        names = [name for name in dir(self) if name.startswith("case_")]
        return [(name.removeprefix("case_").replace("_", " "), getattr(self, name)) for name in names]

    def case_unary(self):
        assert self.unary(b"hello", timeout=5) == b"hello"

    def case_empty_message(self):
        assert self.unary(b"", timeout=5) == b""

    def case_many_at_a_time(self):
        calls = [self.unary.future(str(number).encode(), timeout=10) for number in range(300)]
        assert [call.result() for call in calls] == [str(number).encode() for number in range(300)]

    def case_server_stream(self):
        answers = list(self.server_stream(b"1000 10", timeout=10))
        assert [int.from_bytes(answer[:4], "big") for answer in answers] == list(range(1000))

    def case_empty_stream(self):
        assert list(self.server_stream(b"0 0", timeout=5)) == []

    def case_client_stream(self):
        assert self.client_stream(iter([b"x" * 1000] * 500), timeout=10) == b"500000"

    def case_client_stream_of_nothing(self):
        assert self.client_stream(iter([]), timeout=5) == b"0"

    def case_bidirectional_in_turns(self):
        """Each message is sent only when the answer to the one before is there: nothing may be held back."""
        turn = threading.Semaphore(1)

        def requests():
            for number in range(50):
                turn.acquire()
                yield str(number).encode()

        got = []
        for answer in self.bidirectional(requests(), timeout=10):
            got.append(answer)
            turn.release()
        assert got == [str(number).encode() for number in range(50)], got

    def case_metadata_and_trailers(self):
        metadata = (("x-mine", "a value"), ("x-mine-bin", b"\x00\x01\xfe"))
        answer, call = self.unary.with_call(b"metadata", metadata=metadata, timeout=5)
        initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
        assert initial["x-initial"] == "a value" and initial["x-bytes-bin"] == b"\x00\x01\xfe", initial
        assert trailing["x-trailing"] == "end" and trailing["x-trailing-bin"] == b"\x00\xff", trailing

    def case_error_with_details(self):
        error = refused(lambda: self.unary(b"fail", timeout=5), grpc.StatusCode.FAILED_PRECONDITION)
        assert error.details() == "not today: 100% \u00e4", error.details()
        assert dict(error.trailing_metadata())["x-why"] == "asked for"

    def case_every_status(self):
        for number, status in enumerate(grpc.StatusCode):
            if status is not grpc.StatusCode.OK:
                refused(lambda number=number: self.unary(f"status {number}".encode(), timeout=5), status)

    def case_exception_of_the_service(self):
        refused(lambda: self.unary(b"raise", timeout=5), grpc.StatusCode.UNKNOWN)

    def case_error_in_a_stream(self):
        got = []

        def read():
            for answer in self.bidirectional(iter([b"a", b"b", b"break off", b"c"]), timeout=5):
                got.append(answer)

        refused(read, grpc.StatusCode.ABORTED)
        assert got == [b"a", b"b"], got

    def case_unknown_method(self):
        refused(lambda: self.unknown_method(b"", timeout=5), grpc.StatusCode.UNIMPLEMENTED)

    def case_unknown_service(self):
        refused(lambda: self.unknown_service(b"", timeout=5), grpc.StatusCode.UNIMPLEMENTED)

    def case_no_instance(self):
        refused(lambda: self.gone(b"", timeout=5), grpc.StatusCode.UNAVAILABLE)

    def case_large_request_and_answer(self):
        message = os.urandom(LARGE)
        assert self.unary(message, timeout=30) == message

    def case_large_stream(self):
        size = sum(len(answer) for answer in self.server_stream(b"20 1000000", timeout=30))
        assert size == 20 * 1_000_004, size

    def case_deadline_reaches_the_service(self):
        left = float(self.unary(b"time left", timeout=3))
        # grpcio rounds what it sends up.
        assert 1 < left < 3.1, left

    def case_deadline_is_kept(self):
        cancelled.clear()
        began = time.monotonic()
        refused(lambda: self.unary(b"sleep", timeout=0.5), grpc.StatusCode.DEADLINE_EXCEEDED)
        assert time.monotonic() - began < 2
        assert cancelled.wait(3), "the service works on after the deadline"

    def case_deadline_of_the_gateway(self):
        """Without one of the client's, the policy's 5 s count, and the answer is gRPC's."""
        began = time.monotonic()
        refused(lambda: self.unary(b"sleep"), grpc.StatusCode.DEADLINE_EXCEEDED)
        assert 3 < time.monotonic() - began < 8

    def case_cancelled_call(self):
        cancelled.clear()
        call = self.unary.future(b"sleep", timeout=10)
        time.sleep(0.2)
        call.cancel()
        assert cancelled.wait(3), "the service works on for nobody"

    def case_cancelled_stream(self):
        cancelled.clear()
        call = self.endless(b"", timeout=30)
        for _ in range(5):
            assert next(call) == b"tick"
        call.cancel()
        assert cancelled.wait(3), "the service streams on for nobody"

    def case_stream_longer_than_the_deadline_of_the_gateway(self):
        """The policy's time ends with the head of the answer: a stream may take longer."""
        call = self.endless(b"", timeout=20)
        began = time.monotonic()
        while time.monotonic() - began < 6.5:
            assert next(call) == b"tick"
        call.cancel()

    def case_compressed(self):
        answer = self.unary(b"x" * 100_000, compression=grpc.Compression.Gzip, timeout=5)
        assert answer == b"x" * 100_000


def refused(call, status):
    try:
        answer = call()
    except grpc.RpcError as error:
        assert error.code() == status, f"{error.code()} ({error.details()}) instead of {status}"
        return error
    raise AssertionError(f"answered {answer!r} instead of {status}")


def main():
    report = Report()
    backend = free_port()
    server = serve(backend)
    routes = (
        f"      - {{ id: calls, match: {{ path: '/{SERVICE}/**' }}, to: echo }}\n"
        "      - { id: nobody, match: { path: '/conformance.Gone/**' }, to: gone }\n"
    )
    with Stage() as stage:
        gateways = stage.seawall({"echo": [backend], "gone": []}, timeout="5s", routes=routes)
        with grpc.insecure_channel(f"{HOST}:{gateways.clear}", options=OPTIONS) as channel:
            report.cases("calls through the gateway, in clear text", Calls(channel).cases())
        trust = grpc.ssl_channel_credentials(gateways.authority.read_bytes())
        options = [*OPTIONS, ("grpc.ssl_target_name_override", NAME)]
        with grpc.secure_channel(f"{HOST}:{gateways.tls}", trust, options=options) as channel:
            report.cases("calls through the gateway, with TLS", Calls(channel).cases())
    server.stop(None)


if __name__ == "__main__":
    main()
