"""WebSocket through the gateway, by the Autobahn test suite: its fuzzing client against an echo server, directly and through.

What fails directly is the echo server's; no case may come out worse through the gateway. The suite is of Python 2.7, which
has an environment of its own; where there is none, nothing is compared.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from stage import DIR, HOST, Report, Stage, free_port

# Masses of data: 9 is limits and performance, 12 and 13 compression; of these the smaller ones stand for all.
CASES = {"cases": ["*"], "exclude-cases": ["9.*", "12.*", "13.*"]}
FEW = {"cases": ["9.1.1", "9.1.2", "9.1.3", "9.2.*", "9.3.*", "9.5.*", "9.7.1", "9.8.1", "12.1.*", "13.1.*"], "exclude-cases": ["9.2.6"]}
GOOD = ("OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED")


def python27():
    versions = Path.home() / ".pyenv/versions"
    found = [shutil.which("python2.7"), *sorted(map(str, versions.glob("2.7*/bin/python")), reverse=True)]
    for python in filter(None, found):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([python, "-c", ""], check=True, capture_output=True)
            return python


def wstest():
    """The suite, installed beside the others; `None` without a Python for it."""
    place = DIR.parent / "python27"
    program = place / "venv/bin/wstest"
    if program.exists():
        return program
    python = python27()
    if not python:
        return None
    packages = place / "packages"
    # The last virtualenv that knows 2.7; such an old Python has none of its own.
    subprocess.run([python, "-m", "pip", "install", "-q", "--target", packages, "virtualenv==20.15.1"], check=True)
    environment = os.environ | {"PYTHONPATH": str(packages)}
    subprocess.run([python, "-m", "virtualenv", "-q", place / "venv"], check=True, env=environment)
    subprocess.run([place / "venv/bin/pip", "install", "-q", "autobahntestsuite==25.10.1"], check=True)
    return program


def fuzz(program, name, url, cases):
    """Runs the cases; returns what the suite says of each."""
    reports = DIR / name
    spec = DIR / f"{name}.json"
    server = {"agent": name, "url": url, "options": {"version": 18}}
    options = {"failByDrop": False}
    spec.write_text(json.dumps({"outdir": str(reports), "options": options, "servers": [server], "exclude-agent-cases": {}, **cases}))
    with (DIR / f"{name}.log").open("wb") as log:
        subprocess.run([program, "-m", "fuzzingclient", "-s", spec], check=True, stdout=log, stderr=log, cwd=DIR, timeout=500)
    outcome = json.loads((reports / "index.json").read_text())[name]
    return {case: (result["behavior"], result["behaviorClose"]) for case, result in outcome.items()}


def compare(report, what, directly, through):
    def worse(case):
        before, after = directly.get(case, ("OK", "OK")), through.get(case, ("missing", "missing"))
        return any(now not in GOOD and then in GOOD for then, now in zip(before, after))

    failed = [case for case in directly if worse(case)]
    good = sum(all(part in GOOD for part in through.get(case, ("missing",))) for case in directly)
    base = sum(all(part in GOOD for part in directly[case]) for case in directly)
    result = f"{good} of {len(directly)} ({base} directly)" + (f"; {len(failed)} worse: {', '.join(sorted(failed)[:20])}" if failed else "")
    report.row(what, "none worse than directly", result, bool(directly) and not failed)


def main():
    report = Report()
    program = wstest()
    if program is None:
        report.row("Autobahn's cases through the gateway", "none worse than directly", "there is no Python 2.7 for it here", None)
        return
    with Stage() as stage:
        echo = free_port()
        stage.child("echo", [program, "-m", "echoserver", "-w", f"ws://{HOST}:{echo}"], echo)
        # The server refuses who does not name its own port.
        filters = f"[{{ strip_prefix: 1 }}, {{ set_host: '{HOST}:{echo}' }}]"
        routes = f"      - {{ id: websocket, match: {{ path: '/websocket/**' }}, filters: {filters}, to: echo }}\n"
        gateways = stage.seawall({"echo": [echo]}, routes=routes)
        for what, cases in (("protocol", CASES), ("limits and compression", FEW)):
            name = what.split()[0]
            outcomes = {}

            def run(way, url, name=name, cases=cases, outcomes=outcomes):
                outcomes[way] = fuzz(program, f"{name}-{way}", url, cases)

            ways = {"direct": f"ws://{HOST}:{echo}", "gateway": f"ws://{HOST}:{gateways.clear}/websocket/"}
            threads = [threading.Thread(target=run, args=way) for way in ways.items()]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if len(outcomes) < 2:
                sys.exit(f"the suite did not come to its end: see the logs of {name}")
            compare(report, f"Autobahn, {what}, through the gateway", outcomes["direct"], outcomes["gateway"])


if __name__ == "__main__":
    main()
