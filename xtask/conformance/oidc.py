"""The filter `oidc` against npm's oidc-provider: a login through its own pages, tokens, their renewal, and the logout."""

import json
import os
import pathlib
import shutil
import socket
import subprocess

DIR = pathlib.Path(os.environ["DIR"])
HERE = pathlib.Path(__file__).parent

YAML = """
control: {{ listen: 'CONTROL', ttl: 5m }}
gateways:
  public:
    listen: 'GATEWAY'
    routes:
      - id: all
        match: {{ path: /** }}
        filters:
          - oidc:
              issuer: 'http://PROVIDER'
              client_id: shop
              client_secret: the secret of the shop, long enough
              url: 'http://GATEWAY'
              cookie_secrets: [ only-for-this-run-and-no-longer-than-it ]
              forward: {{ x-user: sub }}
        to: pages
services: {{ pages: {{}} }}
""".replace("{{", "{").replace("}}", "}")


def free():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % listener.getsockname()[1]


def start(name, words, **more):
    with open(DIR / (name + ".log"), "w") as log:
        return subprocess.Popen(words, cwd=DIR, stderr=log, stdout=more.get("stdout", log), text=True)


def main():
    gateway, provider, control = free(), free(), free()
    text = YAML.replace("GATEWAY", gateway).replace("PROVIDER", provider).replace("CONTROL", control)
    (DIR / "seawall.yaml").write_text(text)
    # Modules are found beside those who ask for them, wherever NODE_PATH leads.
    (DIR / "node_modules").symlink_to(os.environ["NODE_PATH"])
    for script in ["oidc_provider.mjs", "oidc_browser.mjs"]:
        shutil.copy(HERE / script, DIR / script)
    words = ["node", "oidc_provider.mjs", provider.rsplit(":", 1)[1]]
    words += ["http://%s/oauth2/callback" % gateway, "http://%s/" % gateway]
    running = start("provider", words, stdout=subprocess.PIPE)
    assert running.stdout.readline().strip() == "ready", "the provider does not start: see provider.log"
    start("control", [os.environ["SEAWALL"], "control"])
    start("gateway", [os.environ["SEAWALL"], "gateway"])
    browser = ["node", "oidc_browser.mjs", gateway, provider, control]
    done = subprocess.run(browser, cwd=DIR, stdout=subprocess.PIPE, text=True, timeout=100)
    print(done.stdout)
    lines = [line for line in done.stdout.splitlines() if line[:5] in ("ok   ", "FAIL ")]
    rows = [
        {"compared": line[5:], "required": "holds", "result": line[:4].strip(), "ok": line.startswith("ok")} for line in lines
    ]
    (DIR / "report.json").write_text(json.dumps(rows))
    assert done.returncode == 0, "the browser did not come to its end"


main()
