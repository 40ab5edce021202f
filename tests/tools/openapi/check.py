"""Holds openapi/ against the gateway, and tries what others make of it.

schemathesis calls every operation with data that the document admits and with data that it does
not; openapi-python-client and openapi-typescript make clients, which are compiled, and the Python
one is used; the AsyncAPI parser reads openapi/sockets.yaml. Prints a line for each check; exit code
0 if all came out well.
"""

import compileall
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
DOCUMENT = ROOT / "openapi/gateway.json"
# Longer than anything here takes on a busy machine; only a failure waits so long.
START_SECONDS = 90
TOOL_SECONDS = 300
# A page of an answer is enough to see what is wrong.
SHOWN_CHARACTERS = 20_000


def main() -> int:
    seed = int(os.environ.get("FIELDPOST_PROVE_SEED") or secrets.randbelow(2**32))
    print(f"seed {seed}; FIELDPOST_PROVE_SEED={seed} repeats this run", flush=True)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="fieldpost-openapi-") as name:
        # The embedded server of a gateway that root starts runs as another user.
        os.chmod(name, 0o755)
        folder = Path(name)
        with gateway(folder / "token", "token") as strict, gateway(folder / "open", "open") as open_:
            report.check("the document that is served is openapi/gateway.json", served, strict)
            report.check("a generated Python client sends and receives", python, folder, strict)
            report.check("schemathesis with --auth token", fuzz_as_peer, strict, seed)
            report.check("schemathesis with --auth token, as an operator", fuzz_as_operator, strict, seed)
            report.check("schemathesis with --auth open", fuzz_open, open_, seed)
            report.check("the gateways stay ready and log no panic", unharmed, [strict, open_])
        report.check("generated TypeScript types compile", typescript, folder)
        report.check("openapi/sockets.yaml is AsyncAPI 3", asyncapi)
    return report.failed


class Failed(Exception):
    """What a check found; the text is for people."""


class Report:
    """Which checks came out well."""

    def __init__(self) -> None:
        self.failed = 0

    def check(self, name: str, check: Callable[..., str | None], *arguments: object) -> None:
        began = time.monotonic()
        try:
            note = check(*arguments)
        except (Failed, OSError, subprocess.SubprocessError) as error:
            self.failed = 1
            print(f"FAILED  {name}\n{error}", flush=True)
            return
        took = time.monotonic() - began
        print(f"ok      {name}{f': {note}' if note else ''} ({took:.0f} s)", flush=True)


@dataclass
class Gateway:
    """A gateway that runs."""

    url: str
    admin_url: str
    data: Path
    log: Path
    environment: dict[str, str]

    def operator_token(self) -> str:
        command = [os.environ["FIELDPOST_BIN"], "operator", "token", "--data-dir", str(self.data)]
        return run(command, env=self.environment).strip().splitlines()[-1]

    def register(self, peer: str) -> str:
        """Registers a peer and returns its token, which is empty in open mode."""
        body = json.dumps({"peer_id": peer, "public_key": f"key of {peer}"}).encode()
        request = urllib.request.Request(f"{self.url}/v1/peers", body)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer).get("token") or ""


@contextlib.contextmanager
def gateway(folder: Path, auth: str) -> Iterator[Gateway]:
    """A gateway with a fresh embedded database, until the block ends."""
    folder.mkdir(mode=0o755)
    port, admin_port = free_port(), free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FIELDPOST_")}
    environment["FIELDPOST_MASTER_KEY"] = secrets.token_hex(32)
    command = [os.environ["FIELDPOST_BIN"], "serve", f"--auth={auth}", "--transports=none"]
    command += [f"--listen=127.0.0.1:{port}", f"--admin-listen=127.0.0.1:{admin_port}"]
    # The checks are one caller; what they find must not depend on how fast they are.
    command += ["--rate-limit=100000", "--registration-rate-limit=100000"]
    command += [f"--data-dir={folder / 'data'}"]
    log = folder / "gateway.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    base, admin = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
    try:
        wait_ready(admin, process, log)
        yield Gateway(base, admin, folder / "data", log, environment)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_ready(admin_url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if is_ready(admin_url):
            return
        time.sleep(0.1)
    raise SystemExit(f"the gateway does not become ready:\n{log.read_text()[-SHOWN_CHARACTERS:]}")


def is_ready(admin_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{admin_url}/readyz", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def run(command: list[str], **options: object) -> str:
    """What a program prints; a `Failed` with all of it if it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TOOL_SECONDS,
            text=True,
            **options,
        )
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace")
        raise Failed(f"{command[0]} is not done after {TOOL_SECONDS} s:\n{said}") from error
    if done.returncode != 0:
        said = done.stdout[-SHOWN_CHARACTERS:]
        raise Failed(f"{command[0]} ended with {done.returncode}:\n{said}")
    return done.stdout


def served(gateway: Gateway) -> None:
    with urllib.request.urlopen(f"{gateway.url}/openapi.json", timeout=30) as answer:
        if json.load(answer) != json.loads(DOCUMENT.read_text()):
            raise Failed("they differ; ./dev fix writes the file anew")


def python(folder: Path, gateway: Gateway) -> None:
    package = folder / "generated_client"
    command = ["openapi-python-client", "generate", "--meta=none", "--fail-on-warning"]
    run([*command, f"--path={DOCUMENT}", f"--output-path={package}"], cwd=folder)
    if not compileall.compile_dir(package, quiet=1):
        raise Failed("the generated package does not compile")
    environment = os.environ | {"PYTHONPATH": str(folder)}
    run([sys.executable, str(HERE / "use_client.py"), gateway.url], env=environment)


def fuzz_as_peer(gateway: Gateway, seed: int) -> str:
    token = gateway.register("fuzzer")
    gateway.register("bob")
    return fuzz(gateway, seed, f"Authorization: Bearer {token}", 10)


def fuzz_as_operator(gateway: Gateway, seed: int) -> str:
    token = gateway.operator_token()
    return fuzz(gateway, seed, f"Authorization: Bearer {token}", 15, "--include-path=/v1/invites")


def fuzz_open(gateway: Gateway, seed: int) -> str:
    gateway.register("fuzzer")
    gateway.register("bob")
    # Invites need an operator's token in this mode too; their own run has one.
    return fuzz(gateway, seed, "Fieldpost-Peer: fuzzer", 3, "--exclude-path=/v1/invites")


def fuzz(gateway: Gateway, seed: int, header: str, examples: int, *more: str) -> str:
    command = ["schemathesis", f"--config-file={HERE / 'schemathesis.toml'}"]
    command += ["--no-color", "run", f"{gateway.url}/openapi.json", "--checks=all"]
    command += [f"--header={header}", f"--seed={seed}", f"--max-examples={examples}", *more]
    # What it would keep of earlier runs would make this one another.
    with tempfile.TemporaryDirectory(prefix="fieldpost-openapi-") as folder:
        said = run(command, cwd=folder)
    for line in said.splitlines():
        if "generated" in line:
            return line.strip()
    raise Failed(f"schemathesis does not say what it did:\n{said[-SHOWN_CHARACTERS:]}")


def unharmed(gateways: list[Gateway]) -> None:
    for gateway in gateways:
        log = gateway.log.read_text()
        if not is_ready(gateway.admin_url):
            raise Failed(f"{gateway.url} is not ready:\n{log[-SHOWN_CHARACTERS:]}")
        for sign in ("panicked", "query failed"):
            if sign in log:
                lines = [line for line in log.splitlines() if sign in line]
                raise Failed("the log tells of failures:\n" + "\n".join(lines[:20]))


def typescript(folder: Path) -> None:
    types = folder / "types"
    types.mkdir()
    run(["openapi-typescript", str(DOCUMENT), f"--output={types / 'gateway.d.ts'}"])
    (types / "use_types.ts").write_text((HERE / "use_types.ts").read_text())
    options = ["--noEmit", "--strict", "--target", "es2022", "--moduleResolution", "bundler"]
    options += ["--module", "esnext"]
    run(["tsc", *options, str(types / "use_types.ts"), str(types / "gateway.d.ts")])


def asyncapi() -> str:
    return run(["node", str(HERE / "parse_sockets.cjs"), str(ROOT / "openapi/sockets.yaml")]).strip()


if __name__ == "__main__":
    sys.exit(main())
