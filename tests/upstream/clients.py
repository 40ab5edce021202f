"""Two clients as they were written for the original system, run against a gateway.

`BitChatClient` and `BetaNetClient` make the calls of the original's transports, count as success
what those count as success, and keep their quirks: no credentials, no message ids of their own, a
boolean in the query that their HTTP library refuses to send. A gateway that serves them serves
the programs that are in use.

    python clients.py --gateway http://127.0.0.1:8000      # one that runs with --auth open
    python clients.py --binary target/debug/fieldpost      # starts one with a fresh database

Exit code 0 if every story came out as it should.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
import time
import traceback
import uuid
from dataclasses import dataclass

import aiohttp

# Longer than anything here takes on a busy machine; only a failure waits so long.
DEADLINE = 60.0
# After an exception the original waits so long before it connects again.
RECONNECT_SECONDS = 5.0
PING_SECONDS = 30.0
KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Received:
    """A message as a client's handler gets it."""

    message_id: str
    sender_id: str
    payload: bytes
    priority: int


class BitChatClient:
    """Registers over HTTP, listens on a WebSocket, sends over HTTP."""

    def __init__(self, base: str, node_id: str) -> None:
        self.base = base
        self.node_id = node_id
        self.display_name = f"Node-{node_id[:8]}"
        # New each time it is constructed, so a restart registers the same name with another key.
        self.public_key = secrets.token_hex(32)
        self.known_peers: set[str] = set()
        self.inbox: asyncio.Queue[Received] = asyncio.Queue()
        self.connected = asyncio.Event()
        self.query_refused = False
        self._running = False
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._listening: asyncio.Task[None] | None = None
        self._last_ping = 0.0

    async def start(self) -> bool:
        self._session = aiohttp.ClientSession()
        peer = {
            "peer_id": self.node_id,
            "public_key": self.public_key,
            "display_name": self.display_name,
        }
        url = f"{self.base}/api/bitchat/peers/register"
        async with self._session.post(url, json=peer) as response:
            if response.status != 201:
                return False
        self._listening = asyncio.create_task(self._listen())
        await self._discover()
        # The task has not had a turn yet: nothing was awaited that really waits.
        self._running = True
        return True

    async def stop(self) -> None:
        self._running = False
        if self._listening:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
        if self._socket and not self._socket.closed:
            await self._socket.close()
        url = f"{self.base}/api/bitchat/peers/{self.node_id}/status"
        try:
            async with self._session.put(url, params={"is_online": False}):
                pass
        except TypeError:
            self.query_refused = True
        await self._session.close()

    async def send(self, receiver_id: str, payload: bytes | str) -> bool:
        content = payload.hex() if isinstance(payload, bytes) else str(payload)
        message = {
            "from_peer_id": self.node_id,
            "to_peer_id": receiver_id,
            "content": content,
            "encryption_algorithm": "AES-256-GCM",
            "ttl": 3600,
        }
        url = f"{self.base}/api/bitchat/messages/send"
        async with self._session.post(url, json=message) as response:
            return response.status == 201

    async def receive(self) -> Received:
        return await asyncio.wait_for(self.inbox.get(), DEADLINE)

    async def _discover(self) -> None:
        url = f"{self.base}/api/bitchat/peers"
        try:
            async with self._session.get(url, params={"online_only": True}) as response:
                if response.status == 200:
                    self.known_peers = {peer["peer_id"] for peer in await response.json()}
        except TypeError:
            # yarl takes no booleans in a query, so no request leaves the client.
            self.query_refused = True

    async def _listen(self) -> None:
        url = f"{self.base.replace('http', 'ws')}/api/bitchat/ws/{self.node_id}"
        while self._running:
            try:
                async with self._session.ws_connect(url) as ws:
                    self._socket = ws
                    self.connected.set()
                    async for frame in ws:
                        if frame.type == aiohttp.WSMsgType.TEXT:
                            await self._take(ws, json.loads(frame.data))
                            await self._ping(ws)
                        else:
                            break
                self.connected.clear()
            except (aiohttp.ClientError, OSError, ValueError):
                self.connected.clear()
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _take(self, ws: aiohttp.ClientWebSocketResponse, frame: dict) -> None:
        if frame.get("type") not in ("message", "group_message"):
            return
        data = frame["data"]
        try:
            payload = bytes.fromhex(data["content"])
        except ValueError:
            payload = data["content"].encode()
        self.inbox.put_nowait(
            Received(data["message_id"], data["from_peer_id"], payload, priority=3)
        )
        if data.get("message_id"):
            await ws.send_json({"type": "ack", "message_id": data["message_id"]})

    async def _ping(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        if time.monotonic() - self._last_ping > PING_SECONDS:
            await ws.send_json({"type": "ping"})
            self._last_ping = time.monotonic()


class BetaNetClient:
    """Registers, sends what it calls Sphinx packets, and polls."""

    def __init__(self, base: str, node_id: str) -> None:
        self.base = base
        self.node_id = node_id
        self.device_name = f"Device-{node_id[:8]}"
        self.mixnode_id: str | None = None
        self.relays: list[dict] = []
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> bool:
        self._session = aiohttp.ClientSession()
        node = {
            "node_id": self.node_id,
            "device_name": self.device_name,
            "capabilities": {"can_relay": True, "privacy_mode": True},
        }
        async with self._session.post(f"{self.base}/api/betanet/register", json=node) as response:
            if response.status not in (200, 201):
                return False
            self.mixnode_id = (await response.json()).get("mixnode_id", self.node_id)
        await self._discover()
        return True

    async def stop(self) -> bool:
        url = f"{self.base}/api/betanet/unregister/{self.mixnode_id}"
        async with self._session.delete(url) as response:
            success = response.status == 200
        await self._session.close()
        return success

    async def send(self, receiver_id: str, payload: bytes | str, priority: int = 3) -> bool:
        route = await self._route(receiver_id)
        packet = {
            "version": 1,
            "route": route,
            "destination": receiver_id,
            "payload": payload.hex() if isinstance(payload, bytes) else payload,
            "encrypted": True,
            "num_hops": len(route),
        }
        message = {
            "from_node": self.node_id,
            "sphinx_packet": packet,
            "route": route,
            "priority": priority,
        }
        async with self._session.post(f"{self.base}/api/betanet/send", json=message) as response:
            return response.status == 200

    async def poll(self) -> Received | None:
        """One call: a message, or none."""
        url = f"{self.base}/api/betanet/receive/{self.node_id}"
        async with self._session.get(url) as response:
            if response.status != 200:
                return None
            message = (await response.json()).get("message")
        if not message:
            return None
        return Received(
            message.get("message_id"),
            message.get("from_node"),
            bytes.fromhex(message["sphinx_packet"]["payload"]),
            message.get("priority", 3),
        )

    async def receive(self) -> Received:
        async with asyncio.timeout(DEADLINE):
            while (message := await self.poll()) is None:
                await asyncio.sleep(0.05)
            return message

    async def _discover(self) -> None:
        async with self._session.get(f"{self.base}/api/betanet/relays") as response:
            if response.status == 200:
                self.relays = await response.json()

    async def _route(self, receiver_id: str) -> list[str]:
        if len(self.relays) < 3:
            await self._discover()
        if len(self.relays) < 3:
            return [receiver_id]
        count = min(random.randint(3, 5), len(self.relays))
        return [relay["node_id"] for relay in random.sample(self.relays, count)] + [receiver_id]


CLIENTS = {"bitchat": BitChatClient, "betanet": BetaNetClient}


async def started(kind: str, base: str, node_id: str) -> BitChatClient | BetaNetClient:
    client = CLIENTS[kind](base, node_id)
    assert await client.start(), f"{kind} client did not start"
    if isinstance(client, BitChatClient):
        await asyncio.wait_for(client.connected.wait(), DEADLINE)
    return client


def new_name(role: str) -> str:
    return f"{role}-{uuid.uuid4()}"


@contextlib.asynccontextmanager
async def pair(kind: str, base: str):
    """Two clients of one kind, started, and stopped at the end."""
    alice = await started(kind, base, new_name("alice"))
    bob = await started(kind, base, new_name("bob"))
    try:
        yield alice, bob
    finally:
        await alice.stop()
        await bob.stop()


async def ask(base: str, path: str) -> object:
    async with aiohttp.ClientSession() as session, session.get(f"{base}{path}") as response:
        assert response.status == 200, f"{path}: {response.status}"
        return await response.json()


async def exchange_both_ways(kind: str, base: str) -> None:
    async with pair(kind, base) as (alice, bob):
        for sender, receiver in ((alice, bob), (bob, alice)):
            assert await sender.send(receiver.node_id, b"hello \xff")
            message = await receiver.receive()
            assert message.payload == b"hello \xff"
            assert message.sender_id == sender.node_id
            assert uuid.UUID(message.message_id)


async def carry_every_byte_and_large_payloads(kind: str, base: str) -> None:
    async with pair(kind, base) as (alice, bob):
        for payload in (bytes(range(256)), secrets.token_bytes(64 * KIB), secrets.token_bytes(MIB)):
            assert await alice.send(bob.node_id, payload), f"{len(payload)} bytes were refused"
            assert (await bob.receive()).payload == payload, f"{len(payload)} bytes changed"


async def keep_the_order_of_twenty(kind: str, base: str) -> None:
    async with pair(kind, base) as (alice, bob):
        sent = [f"number {number}".encode() for number in range(20)]
        for payload in sent:
            assert await alice.send(bob.node_id, payload)
        received = [await bob.receive() for _ in sent]
        assert [message.payload for message in received] == sent
        assert len({message.message_id for message in received}) == len(sent)


async def store_for_a_client_that_is_away(kind: str, base: str) -> None:
    alice = await started(kind, base, new_name("alice"))
    name = new_name("bob")
    bob = await started(kind, base, name)
    assert await alice.send(name, b"while here")
    assert (await bob.receive()).payload == b"while here"
    await bob.stop()
    away = [f"while away {number}".encode() for number in range(5)]
    for payload in away:
        assert await alice.send(name, payload)
    bob = await started(kind, base, name)
    assert [(await bob.receive()).payload for _ in away] == away
    # Nothing of before comes again, and what comes next is next.
    assert await alice.send(name, b"after return")
    assert (await bob.receive()).payload == b"after return"
    await bob.stop()
    await alice.stop()


async def restart_again_and_again(kind: str, base: str) -> None:
    alice = await started(kind, base, new_name("alice"))
    name = new_name("bob")
    for number in range(5):
        bob = await started(kind, base, name)
        assert await alice.send(name, f"life {number}".encode())
        assert (await bob.receive()).payload == f"life {number}".encode()
        await bob.stop()
    await alice.stop()


async def refuse_nobody_and_say_so(kind: str, base: str) -> None:
    async with pair(kind, base) as (alice, _):
        assert not await alice.send(new_name("nobody"), b"lost?")


async def presence_follows_the_socket(base: str) -> None:
    client = await started("bitchat", base, new_name("carol"))
    path = f"/api/bitchat/peers/{client.node_id}"
    assert (await ask(base, path))["is_online"] is True
    await client.stop()
    # The client's own statement never leaves it; that its socket closed has to be enough.
    assert client.query_refused and not client.known_peers
    async with asyncio.timeout(DEADLINE):
        while (await ask(base, path))["is_online"]:
            await asyncio.sleep(0.05)


async def broadcasts_reach_everybody_connected(base: str) -> None:
    alice = await started("bitchat", base, new_name("alice"))
    others = [await started("bitchat", base, new_name("other")) for _ in range(3)]
    assert await alice.send("broadcast", b"to all")
    for other in others:
        message = await other.receive()
        assert (message.payload, message.sender_id) == (b"to all", alice.node_id)
    for client in (alice, *others):
        await client.stop()


async def the_two_kinds_reach_each_other(base: str) -> None:
    alice = await started("bitchat", base, new_name("alice"))
    bob = await started("betanet", base, new_name("bob"))
    assert await alice.send(bob.node_id, "Grüße")
    assert (await bob.receive()).payload == "Grüße".encode()
    assert await bob.send(alice.node_id, b"\x00\xff")
    assert (await alice.receive()).payload == b"\x00\xff"
    await alice.stop()
    assert await bob.stop()


async def betanet_priorities_come_back(base: str) -> None:
    async with pair("betanet", base) as (alice, bob):
        for priority in (0, 1, 3, 4, 5):
            assert await alice.send(bob.node_id, b"p", priority)
            assert (await bob.receive()).priority == priority
        assert not await alice.send(bob.node_id, b"p", 2)
        assert await bob.poll() is None


STORIES = [
    *(
        (f"{kind}: {story.__name__}", lambda base, kind=kind, story=story: story(kind, base))
        for kind in CLIENTS
        for story in (
            exchange_both_ways,
            carry_every_byte_and_large_payloads,
            keep_the_order_of_twenty,
            store_for_a_client_that_is_away,
            restart_again_and_again,
            refuse_nobody_and_say_so,
        )
    ),
    *(
        (story.__name__, story)
        for story in (
            presence_follows_the_socket,
            broadcasts_reach_everybody_connected,
            the_two_kinds_reach_each_other,
            betanet_priorities_come_back,
        )
    ),
]


async def tell(base: str) -> int:
    """Runs every story; returns how many failed."""
    failed = 0
    for name, story in STORIES:
        began = time.monotonic()
        try:
            await story(base)
            verdict = "ok"
        except Exception:  # noqa: BLE001 - one failed story must not hide the others
            failed += 1
            verdict = "FAILED\n" + traceback.format_exc()
        print(f"{name.replace('_', ' ')} ({time.monotonic() - began:.1f} s): {verdict}", flush=True)
    return failed


def master_key_file(folder: str) -> str:
    path = f"{folder}/master.key"
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.asynccontextmanager
async def gateway(binary: str, options: list[str]):
    """A gateway of our own, with a fresh database unless `options` name one."""
    port, admin_port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="fieldpost-clients-") as folder:
        # The embedded server of a gateway that root starts runs as another user.
        os.chmod(folder, 0o755)
        command = [binary, "serve", "--transports", "none", "--auth", "open", "--listen", f"127.0.0.1:{port}"]
        command += ["--admin-listen", f"127.0.0.1:{admin_port}"]
        command += ["--master-key-file", master_key_file(folder)]
        if "--database-url" not in options:
            command += ["--data-dir", f"{folder}/data"]
        process = await asyncio.create_subprocess_exec(*command, *options)
        base = f"http://127.0.0.1:{port}"
        try:
            await ready(base, process)
            yield base
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.wait(), DEADLINE)


async def ready(base: str, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(DEADLINE), aiohttp.ClientSession() as session:
        while process.returncode is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{base}/health") as response:
                    if (await response.json())["status"] == "healthy":
                        return
            await asyncio.sleep(0.1)
    raise RuntimeError(f"the gateway ended with {process.returncode}")


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--gateway", help="base URL of a gateway that runs with --auth open")
    which.add_argument("--binary", help="the fieldpost command, to start one")
    parser.add_argument("options", nargs="*", help="after --, options of serve for --binary")
    arguments = parser.parse_args()
    if arguments.gateway:
        return await tell(arguments.gateway.rstrip("/"))
    async with gateway(arguments.binary, arguments.options) as base:
        return await tell(base)


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main()) else 0)
