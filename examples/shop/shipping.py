"""Shipping, the fourth service of the shop: Python's standard library alone, to show that a service needs no SDK.

It listens on PORT, keeps its deliveries in SQLite, and answers a repeated request as it did the first time.
"""

import json
import os
import signal
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SCHEMA = """
    CREATE TABLE IF NOT EXISTS city (name TEXT PRIMARY KEY, slots INTEGER NOT NULL, used INTEGER NOT NULL,
        CHECK (used BETWEEN 0 AND slots));
    CREATE TABLE IF NOT EXISTS delivery (order_id TEXT PRIMARY KEY, city TEXT, status TEXT NOT NULL);
    INSERT OR IGNORE INTO city VALUES ('harbour', 1000000, 0), ('hill', 1000000, 0), ('island', 10, 0);
"""


def database():
    folder = os.environ.get("SHOP_DATA", "shop-data")
    os.makedirs(folder, exist_ok=True)
    connection = sqlite3.connect(os.path.join(folder, "shipping.db"), timeout=5, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


class Refused(Exception):
    def __init__(self, status, why):
        super().__init__(why)
        self.status = status


def show(db, order):
    row = db.execute("SELECT city, status FROM delivery WHERE order_id = ?", [order]).fetchone()
    if row is None:
        raise Refused(404, f"nothing is to be delivered for {order}")
    return 200, {"order": order, "city": row[0], "status": row[1]}


def deliver(db, order, city):
    """Books a slot once an order, and never again once it has been cancelled."""
    row = db.execute("SELECT status FROM delivery WHERE order_id = ?", [order]).fetchone()
    if row == ("booked",):
        return 200, {"city": city}
    if row:
        raise Refused(409, f"the delivery of {order} was cancelled")
    taken = db.execute("UPDATE city SET used = used + 1 WHERE name = ? AND used < slots", [city]).rowcount
    if taken == 0:
        raise Refused(409, f"no delivery slot: {city}")
    db.execute("INSERT INTO delivery VALUES (?, ?, 'booked')", [order, city])
    return 201, {"city": city}


def cancel(db, order):
    """Frees the slot; where none was booked, makes sure that none will be."""
    row = db.execute("SELECT city FROM delivery WHERE order_id = ? AND status = 'booked'", [order]).fetchone()
    if row:
        db.execute("UPDATE city SET used = used - 1 WHERE name = ?", row)
    db.execute(
        "INSERT INTO delivery VALUES (?, NULL, 'cancelled') ON CONFLICT (order_id) DO UPDATE SET status = 'cancelled'",
        [order],
    )
    return 200, {"cancelled": order}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    # The head and the body of an answer are two writes: with Nagle's algorithm the second would wait for the
    # caller's delayed acknowledgement of the first, some 40 ms.
    disable_nagle_algorithm = True

    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, {"ok": True})
        prefix = "/deliveries/"
        if not self.path.startswith(prefix):
            return self.answer(404, {"error": self.path})
        self.write(lambda db: show(db, self.path[len(prefix):]))

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != "/deliveries":
            return self.answer(404, {"error": self.path})
        try:
            wanted = json.loads(body)
            order, city = wanted["order"], wanted["city"]
        except (ValueError, KeyError, TypeError) as error:
            return self.answer(400, {"error": f"a delivery needs `order` and `city`: {error}"})
        self.write(lambda db: deliver(db, order, city))

    def do_DELETE(self):
        prefix = "/deliveries/"
        if not self.path.startswith(prefix):
            return self.answer(404, {"error": self.path})
        self.write(lambda db: cancel(db, self.path[len(prefix):]))

    def write(self, work):
        """Does the work in one transaction."""
        db = database()
        try:
            db.execute("BEGIN IMMEDIATE")
            status, answer = work(db)
            db.execute("COMMIT")
        except Refused as refused:
            db.execute("ROLLBACK")
            status, answer = refused.status, {"error": str(refused)}
        except sqlite3.Error as error:
            status, answer = 500, {"error": str(error)}
        finally:
            db.close()
        self.answer(status, answer)

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
    setup = database()
    setup.executescript("BEGIN IMMEDIATE;" + SCHEMA + "COMMIT;")
    setup.close()
    server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
