"""A lock from Python, with nothing but its standard library.

    python3 examples/lock.py http://127.0.0.1:7400 nightly-report

Takes the lock, says its fencing token, holds it until standard input ends, and gives it back. Within a sidecar the address is
$SEAWALL_URL/control.
"""

import http.client
import json
import secrets
import sys
import threading
import time
import urllib.parse

TTL = 10.0
# Of every keep-alive: clocks that differ in speed, and time for the work to stop in.
MARGIN = TTL / 10 + 0.1


class Lost(Exception):
    pass


class Session:
    """Lives as long as its keep-alives are answered; `check` says for how long it is sure."""

    def __init__(self, url, owner):
        self.url = urllib.parse.urlsplit(url)
        sent = time.monotonic()
        self.id = self.call("POST", "/v1/sessions", {"ttl": f"{TTL:.0f}s", "owner": owner})["session"]
        self.sure_until = sent + TTL - MARGIN
        self.closed = threading.Event()
        threading.Thread(target=self.keep_alive, daemon=True).start()

    def call(self, method, path, body=None, timeout=5.0):
        connection = http.client.HTTPConnection(self.url.netloc, timeout=timeout)
        try:
            connection.request(method, self.url.path + path, json.dumps(body) if body is not None else None,
                               {"content-type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise Lost(f"{method} {path}: {answer.status} {text.decode()}")
        return json.loads(text) if text else None

    def keep_alive(self):
        while not self.closed.wait(TTL / 3):
            # The time before it is sent: the server counts from some moment after that.
            sent = time.monotonic()
            try:
                self.call("POST", f"/v1/sessions/{self.id}/keep-alive", timeout=TTL / 3)
                self.sure_until = sent + TTL - MARGIN
            except (OSError, Lost, http.client.HTTPException):
                pass  # Tried again; `check` ends it when it takes too long.

    def check(self):
        left = self.sure_until - time.monotonic()
        if left <= 0:
            raise Lost("the session was not kept alive in time")
        return left

    def acquire(self, name, patience):
        """The lock's fencing token, and how to release it."""
        token = secrets.token_hex(16)
        path = f"/v1/locks/{urllib.parse.quote(name, safe='')}/claims/{token}"
        until = time.monotonic() + patience
        while True:
            # One request waits a few seconds; the same again has kept its place in the queue.
            wait = max(0.0, min(5.0, until - time.monotonic()))
            try:
                held = self.call("PUT", f"{path}?wait={wait * 1000:.0f}ms", {"session": self.id}, timeout=wait + 5)
                self.check()
                return held["fence"], lambda: self.call("DELETE", f"{path}?session={self.id}")
            except Lost as error:
                if " 408 " not in str(error) or time.monotonic() >= until:
                    raise
            except (OSError, http.client.HTTPException):
                # It may have been done. The same again says what became of it; who gives up withdraws it.
                if time.monotonic() >= until:
                    self.withdraw(path)
                    raise
                time.sleep(0.1 + 0.4 * secrets.randbelow(1000) / 1000)

    def withdraw(self, path):
        try:
            self.call("DELETE", f"{path}?session={self.id}")
        except (OSError, Lost, http.client.HTTPException):
            self.closed.set()  # No more keep-alives: it ends with the session.

    def close(self):
        self.closed.set()
        self.call("DELETE", f"/v1/sessions/{self.id}")


def main():
    url, name = sys.argv[1:3]
    session = Session(url, "lock.py")
    fence, release = session.acquire(name, patience=30)
    print(f"token {fence}, sure for another {session.check():.1f} s", flush=True)
    sys.stdin.read()
    # What is done with the lock goes with the token, or asks `check` before each step.
    session.check()
    release()
    session.close()


if __name__ == "__main__":
    main()
