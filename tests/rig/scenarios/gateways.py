# rig: --adapters 2 --mem 3072
# rig-packages: postgresql-17
"""Two whole gateways, each with a database and an adapter of its own: HTTP at one, a WebSocket at the
other, Bluetooth between them. The guest needs a Postgres server (see README.md)."""
import asyncio
import glob
import json
import os
import subprocess
import time
import urllib.error
import urllib.request

from history import Traffic
from rig import Failed, Table, kill_bluetoothd, start_bluetoothd

KEY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
LONG = 240
CUTS, CUT, BETWEEN = 3, 5, 10


class Gateway:
    def __init__(self, number):
        self.number, self.url = number, f"http://127.0.0.1:{8000 + number}"
        self.environment = dict(os.environ, HOME=f"/tmp/home{number}", FIELDPOST_URL=self.url)
        self.process = self.id = None

    def start(self):
        os.makedirs(self.environment["HOME"], exist_ok=True)
        servers = glob.glob("/usr/lib/postgresql/*/bin")
        self.environment["PATH"] = ":".join([*servers, self.environment["PATH"]])
        log = open(f"/out/gateway{self.number}.log", "ab")
        self.process = subprocess.Popen(
            ["./fieldpost", "serve", "--listen", f"127.0.0.1:{8000 + self.number}",
             "--admin-listen", f"127.0.0.1:{9090 + self.number}", "--data-dir", f"/tmp/data{self.number}",
             "--auth", "open", "--transports", "ble", "--ble-radio", f"hci{self.number}"],
            env=self.environment, stdout=log, stderr=log)

    def ask(self, path, body=None, peer=None):
        request = urllib.request.Request(self.url + path, method="POST" if body is not None else "GET")
        request.add_header("Content-Type", "application/json")
        if peer:
            request.add_header("Fieldpost-Peer", peer)
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(request, data, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    async def until(self, what, path, holds, peer=None):
        end, answer = time.monotonic() + LONG, None
        while time.monotonic() < end:
            try:
                answer = await asyncio.to_thread(self.ask, path, None, peer)
                if holds(answer):
                    return answer
            except (OSError, ValueError) as problem:
                answer = repr(problem)
            if self.process.poll() is not None:
                raise Failed(f"gateway {self.number} ended with {self.process.returncode}")
            await asyncio.sleep(0.5)
        raise Failed(f"{what}: {str(answer)[:300]}")


async def start(one, two):
    for gateway, peer in (one, "alice"), (two, "bob"):
        gateway.start()
    for gateway, peer in (one, "alice"), (two, "bob"):
        await gateway.until("it starts", "/v1/status", lambda _: True)
        gateway.id = gateway.ask("/v1/status")["gateway_id"]
        gateway.ask("/v1/peers", {"peer_id": peer, "public_key": KEY})


async def find(one, two):
    for gateway, other in (one, two), (two, one):
        await gateway.until("they find each other", "/v1/gateways", lambda answer, other=other: any(
            each["gateway_id"] == other.id and "ble" in each["transports"] for each in answer["gateways"]))


async def carry(one, two, text):
    """HTTP at one, WebSocket at the other, and the sender sees how it travelled."""
    listening = await asyncio.create_subprocess_exec(
        "./fieldpost", "listen", "--as", "bob", "--count", "1", "--json", "--read",
        env=two.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    sent = await asyncio.to_thread(
        one.ask, "/v1/messages", {"to": f"bob@{two.id}", "content": text}, "alice")
    try:
        out, err = await asyncio.wait_for(listening.communicate(), LONG)
    except asyncio.TimeoutError as problem:
        listening.kill()
        raise Failed("bob's socket heard nothing") from problem
    if text not in out.decode():
        raise Failed(f"bob heard {out.decode()[:200]} {err.decode()[-300:]}")
    told = await one.until("the receipt comes back", f"/v1/messages/{sent['message_id']}",
                           lambda message: message["status"] in ("delivered", "read"), "alice")
    return json.dumps([{key: attempt.get(key) for key in ("transport", "result", "hops")}
                       for each in told.get("recipients", []) for attempt in each.get("attempts", [])])


async def cut(one, two):
    """A message accepted while there is no Bluetooth arrives when there is."""
    kill_bluetoothd()
    await one.until("it notices", "/v1/gateways", lambda answer: not any(
        "ble" in each["transports"] for each in answer["gateways"]))
    carrying = asyncio.create_task(carry(one, two, "sent while it was cut"))
    await asyncio.sleep(3)
    start_bluetoothd()
    return await carrying


async def cut_and_return(one, two):
    """Traffic both ways over several cuts; `./dev rig` has the history judged."""
    traffic, returns = Traffic(), []
    reading = [asyncio.create_task(traffic.read(gateway, peer)) for gateway, peer in ((one, "alice"), (two, "bob"))]
    writing = [asyncio.create_task(traffic.write(one, "alice", two, "bob")),
               asyncio.create_task(traffic.write(two, "bob", one, "alice"))]
    for _ in range(CUTS):
        await asyncio.sleep(BETWEEN)
        kill_bluetoothd()
        await asyncio.sleep(CUT)
        start_bluetoothd()
        returned, before = time.monotonic(), len(traffic.seen)
        while len(traffic.seen) == before:
            if time.monotonic() > returned + LONG:
                raise Failed(f"nothing arrived after cut {len(returns) + 1}")
            await asyncio.sleep(0.1)
        returns.append(time.monotonic() - returned)
    traffic.writing = False
    await asyncio.gather(*writing)
    await traffic.settle(LONG)
    for task in reading:
        task.cancel()
    traffic.save("/out/history.json")
    resumed = ", ".join(f"{seconds:.1f} s" for seconds in returns)
    return f"{len(traffic.sent)} messages, {len(traffic.seen)} shown, resumed after {resumed}"


async def main():
    table = Table()
    one, two = Gateway(0), Gateway(1)
    if (await table.prove("two gateways start", start(one, two)) and
            await table.prove("they find each other by Bluetooth", find(one, two)) and
            await table.prove("HTTP, Bluetooth, WebSocket", carry(one, two, "over the air"))):
        await table.prove("bluetoothd killed and started again", cut(one, two))
        await table.prove("cut and return under traffic", cut_and_return(one, two))
    doctor = subprocess.run(["./fieldpost", "doctor", "--ble-radio", "hci0", "--transports", "ble"],
                            env=one.environment, capture_output=True, text=True, check=False)
    print("\n".join(line for line in doctor.stdout.splitlines() if "Blue" in line), flush=True)
    for gateway in one, two:
        gateway.process.terminate()
    table.end()


try:
    asyncio.run(main())
except urllib.error.HTTPError as problem:
    print(problem.read().decode(), flush=True)
    raise
