"""A client that means well, in a process of its own beside the abuse: is it served?"""

import http.client
import json
import ssl
import subprocess
import sys
import threading
import time

from stage import HOST, NAME

# How long it waits for an answer at most, in seconds.
PATIENCE = 10.0


class Bystander:
    """Asks for `/echo/` again and again as long as the context lasts; then has `served`, `failed`, `slowest` (seconds)."""

    def __init__(self, port, authority=None):
        self.words = [sys.executable, "-B", __file__, str(port), *([str(authority)] if authority else [])]

    def __enter__(self):
        self.process = subprocess.Popen(self.words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdout.readline()
        return self

    def __exit__(self, *_):
        out, _ = self.process.communicate(timeout=60)
        self.served, self.failed, self.slowest = json.loads(out)

    def __str__(self):
        return f"others: {self.served} served, {self.failed} failed, slowest {self.slowest * 1000:.0f} ms"

    def fine(self):
        return self.served > 0 and not self.failed


def ask(port, authority):
    if authority:
        context = ssl.create_default_context(cafile=authority)
        context.check_hostname = False
        connection = http.client.HTTPSConnection(HOST, port, timeout=PATIENCE, context=context)
    else:
        connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE)
    try:
        connection.request("GET", "/echo/", headers={"host": NAME})
        answer = connection.getresponse()
        return answer.status == 200 and len(answer.read()) == 1000
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main():
    port, authority = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    print("begun", flush=True)
    served = failed = 0
    slowest = 0.0
    while not over.is_set():
        began = time.monotonic()
        good = ask(port, authority)
        slowest = max(slowest, time.monotonic() - began)
        served, failed = served + good, failed + (not good)
        time.sleep(0.02)
    print(json.dumps([served, failed, slowest]))


if __name__ == "__main__":
    main()
