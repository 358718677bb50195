"""TLS at the gateway, audited by testssl.sh; and slow clients by slowhttptest."""

import json
import re
import subprocess

import service
from bystander import Bystander
from stage import DIR, HOST, NAME, Report, Stage

ABOVE_LOW = ("MEDIUM", "HIGH", "CRITICAL", "FATAL")
# What is said of the test's own certificate, or of the machine: it is signed by nobody whom others trust, and there is no DNS.
NOT_OURS = re.compile(r"^(cert_chain_of_trust|cert_revocation|cert_ocspRevoked|DNS_CAArecord|cert_crlDistributionPoints|cert_ocspURL)")

SLOW = {
    "slow heads (slowloris)": ["-H", "-i", "5"],
    "slow bodies": ["-B", "-i", "5", "-s", "8192"],
    "slow readers": ["-X", "-w", "10", "-y", "20", "-n", "5", "-z", "32", "-k", "3"],
    "ranges without number": ["-R"],
}


def audit(report, gateways):
    findings = DIR / "testssl.json"
    words = ["testssl", "--quiet", "--color", "0", "--warnings", "batch", "--ip", HOST, "--jsonfile", findings]
    # Protocols, ciphers, forward secrecy, preference, certificate, headers, vulnerabilities; not what each browser would choose.
    words += ["-p", "-s", "-f", "-P", "-S", "-h", "-U", "--connect-timeout", "10", "--openssl-timeout", "10", f"{NAME}:{gateways.tls}"]
    with (DIR / "testssl.log").open("wb") as log:
        subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=550, check=False)
    found = json.loads(findings.read_text())
    about = [one for one in found if one["severity"] in ABOVE_LOW and not NOT_OURS.match(one["id"])]
    told = [f"{one['id']} ({one['severity']}: {one['finding'][:60]})" for one in about]
    low = sum(one["severity"] == "LOW" for one in found)
    # The last that it looks for.
    ended = any(one["id"] == "RC4" for one in found)
    result = "; ".join([f"{len(about)} of {len(found)} findings ({low} low)", *told]) if ended else "it did not come to its end"
    report.row("testssl.sh: findings above low", 0, result, ended and not about)


def slow(report, gateways):
    for what, words in SLOW.items():
        url = f"http://{HOST}:{gateways.clear}/echo/" if "readers" not in what else f"http://{HOST}:{gateways.clear}/large/"
        with Bystander(gateways.clear) as others:
            name = what.split()[0]
            words = ["slowhttptest", "-c", "500", "-r", "200", "-l", "12", "-p", "3", "-u", url, *words]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=DIR)
        (DIR / f"slowhttptest-{name}.log").write_text(done.stdout + done.stderr)
        down = len(re.findall(r"service available:\D*NO", done.stdout))
        ok = others.fine() and not down and gateways.clear_process.alive()
        report.row(f"slowhttptest, {what}, 500 connections", "others served", str(others) + (f"; unavailable {down} times" if down else ""), ok)


def main():
    report = Report()
    with Stage() as stage:
        # testssl.sh asks for `/`.
        root = "      - { id: root, match: { path: '/' }, to: echo }\n"
        gateways = service.gateways(stage, routes=root, gateway="    filters: [{ security_headers: {} }]\n")
        audit(report, gateways)
        slow(report, gateways)


if __name__ == "__main__":
    main()
