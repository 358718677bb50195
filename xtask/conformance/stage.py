"""What the suites have in common: servers as children on loopback ports, and a report.

A suite is a program. `cargo xtask conformance` gives it SEAWALL, the binary, and DIR, a directory for its logs; it writes
`report.json` there: a list of what was compared, what is required, what came out, and whether that is enough.
"""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

SEAWALL = os.environ.get("SEAWALL", "seawall")
DIR = Path(os.environ.get("DIR", ".")).resolve()
HOST = "127.0.0.1"
NAME = "gateway.test"


def free_port():
    """A port that nobody uses, below the range that outgoing connections get theirs from."""
    while True:
        port = random.randrange(10_000, 19_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            return port


class Child:
    """A server of ours; its output is in a file of its name."""

    def __init__(self, name, words, port=None, patience=20, **options):
        self.name = name
        self.log = DIR / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=DIR, **options
            )
        self.pid = self.process.pid
        if port is not None:
            self.wait_for(port, patience)

    def wait_for(self, port, patience):
        end = time.monotonic() + patience
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, port), timeout=1).close()
                return
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                sys.exit(f"{self.name} does not listen on {port}: see {self.log}")
            time.sleep(0.02)

    def alive(self):
        return self.process.poll() is None

    def resident(self):
        """Megabytes of memory that it really has."""
        with open(f"/proc/{self.pid}/status") as status:
            kilobytes = next(line for line in status if line.startswith("VmRSS:"))
        return int(kilobytes.split()[1]) / 1024

    def processor_time(self):
        """Seconds that it has spent on a processor."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
        if self.alive():
            self.process.kill()
        self.process.wait()


class Stage(contextlib.ExitStack):
    """Everything that is started on it ends with it."""

    def child(self, name, words, port=None, **options):
        child = Child(name, words, port, **options)
        self.callback(child.stop)
        return child

    def certificate(self):
        """A certificate for `gateway.test` and 127.0.0.1, and the authority that clients have to trust."""
        paths = {name: DIR / f"{name}.pem" for name in ("authority", "authority-key", "chain", "key")}
        if not paths["chain"].exists():
            make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            silent = {"check": True, "capture_output": True, "cwd": DIR}
            subprocess.run(
                [*make, "-days", "30", "-subj", "/CN=Conformance", "-keyout", paths["authority-key"], "-out", paths["authority"],
                 "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
                **silent,
            )
            subprocess.run(
                [*make, "-days", "200", "-subj", f"/CN={NAME}", "-keyout", paths["key"], "-out", paths["chain"],
                 "-CA", paths["authority"], "-CAkey", paths["authority-key"], "-addext", f"subjectAltName=DNS:{NAME},IP:{HOST}",
                 "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth"],
                **silent,
            )
        return paths

    def seawall(self, services, timeout="30s", routes="", gateway="", control=""):
        """Two gateways, one in clear text and one with TLS, and a control node that knows the instances.

        `services` has the ports of each. All of a service is below `/<service>/`; `routes` come after that.
        """
        certificate = self.certificate()
        ports = {name: free_port() for name in ("control", "clear", "tls")}
        routes = "".join(
            f"      - {{ id: {name}, match: {{ path: '/{name}/**' }}, filters: [{{ strip_prefix: 1 }}], to: {name} }}\n"
            for name in services
        ) + routes
        shared = f"    workers: 1\n{gateway}    routes:\n{routes}"
        tls = f"{{ certificates: [{{ chain: {certificate['chain']}, key: {certificate['key']} }}] }}"
        (DIR / "seawall.yaml").write_text(
            f"control: {{ listen: {HOST}:{ports['control']}, data: ./data, ttl: 1h }}\n"
            f"policies:\n  default:\n    timeout: {timeout}\n    retry: {{ attempts: 1 }}\n    breaker: {{ enabled: false }}\n"
            f"{control}"
            f"gateways:\n  clear:\n    listen: {HOST}:{ports['clear']}\n{shared}"
            f"  tls:\n    listen: {HOST}:{ports['tls']}\n    tls: {tls}\n{shared}"
            f"services: {{ {', '.join(f'{name}: {{}}' for name in services)} }}\n"
        )
        words = ["--config", DIR / "seawall.yaml"]
        self.child("control", [SEAWALL, "control", *words], ports["control"])
        for service, instances in services.items():
            for number, port in enumerate(instances):
                register(ports["control"], service, f"{service}-{number}", port)
        gateways = Gateways(ports["clear"], ports["tls"])
        gateways.clear_process = self.child("gateway-clear", [SEAWALL, "gateway", "clear", *words], ports["clear"])
        gateways.tls_process = self.child("gateway-tls", [SEAWALL, "gateway", "tls", *words], ports["tls"])
        gateways.authority = certificate["authority"]
        return gateways


class Gateways:
    def __init__(self, clear, tls):
        self.clear, self.tls = clear, tls

    def secure(self, alpn=("http/1.1",)):
        """A connection with TLS."""
        context = ssl.create_default_context(cafile=self.authority)
        context.set_alpn_protocols(list(alpn))
        return context.wrap_socket(socket.create_connection((HOST, self.tls), timeout=10), server_hostname=NAME)


def register(control, service, instance, port):
    connection = http.client.HTTPConnection(HOST, control, timeout=10)
    body = json.dumps({"id": instance, "address": HOST, "port": port})
    connection.request("PUT", f"/v1/services/{service}/instances/{instance}", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"control does not take an instance of {service}: {answer.status} {answer.read()}")
    connection.close()


class Report:
    """The rows of a suite. Each is written at once, so that a suite that comes to no end has shown what it did."""

    def __init__(self):
        self.rows = []

    def row(self, compared, required, result, ok):
        """`ok` is `None` for what could not be run here."""
        ok = None if ok is None else bool(ok)
        print(f"{ {True: 'ok', False: 'BELOW', None: 'not run'}[ok]}: {compared}: {result} (required: {required})", flush=True)
        self.rows.append({"compared": compared, "required": str(required), "result": str(result), "ok": ok})
        (DIR / "report.json").write_text(json.dumps(self.rows, indent=1))

    def cases(self, compared, cases):
        """Runs `(name, function)`; one that raises has failed."""
        failed = []
        for name, case in cases:
            try:
                case()
                print(f"  passed: {name}", flush=True)
            except Exception as error:
                failed.append(name)
                print(f"  FAILED: {name}: {type(error).__name__}: {error}", flush=True)
        passed = f"{len(cases) - len(failed)} of {len(cases)}"
        self.row(compared, "all", passed + (f"; not {', '.join(failed)}" if failed else ""), not failed)
