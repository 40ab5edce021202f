"""What the scenarios share: nodes as child processes, waiting with deadlines, a table at the end.

A scenario runs in the guest, in the payload's folder. It prints `RESULT name seconds note` for each
thing proved, and ends with status 0 only if all of them held.
"""
import asyncio
import json
import os
import subprocess
import sys
import time

# Far more than anything takes, in the guest's own time.
LONG = 30


class Failed(Exception):
    """Something did not come to be."""


class Speaker:
    """Something that tells events and takes commands, both in lines of JSON."""

    def __init__(self, nickname):
        self.nickname, self.id = nickname, None
        self.events, self.seen, self.changed = [], 0, asyncio.Event()

    async def listen(self, lines, writer):
        self.writer = writer
        self.reader = asyncio.create_task(self._read(lines))
        self.id = (await self.wait("node"))["id"]
        return self

    async def _read(self, lines):
        with open(f"/out/{self.nickname}.events", "a", encoding="utf-8") as record:
            async for line in lines:
                event = json.loads(line)
                event["at"] = time.monotonic()
                record.write(f"{event['at']:.3f} {line.decode()}")
                record.flush()
                self.events.append(event)
                self.changed.set()
        self.changed.set()

    def say(self, **command):
        self.writer.write((json.dumps(command) + "\n").encode())

    def mark(self):
        """Later waits look only at what comes after this moment."""
        self.seen = len(self.events)

    def find(self, event_kind, since=0, **wanted):
        for event in self.events[since:]:
            if event["event"] == event_kind and all(event.get(key) == value for key, value in wanted.items()):
                return event
        return None

    async def wait(self, event_kind, timeout=LONG, **wanted):
        """The first event of that kind and with those values since the last mark."""
        end = time.monotonic() + timeout
        while True:
            self.changed.clear()
            event = self.find(event_kind, self.seen, **wanted)
            if event:
                return event
            left = end - time.monotonic()
            if left <= 0 or self.reader.done():
                raise Failed(f"{self.nickname}: no {event_kind} {wanted} within {timeout} s")
            try:
                await asyncio.wait_for(self.changed.wait(), left)
            except asyncio.TimeoutError:
                pass


class Node(Speaker):
    """One `rig_node`, a child process."""

    def __init__(self, adapter, nickname):
        super().__init__(nickname)
        self.adapter, self.process = adapter, None

    async def start(self):
        environment = dict(os.environ)
        environment.setdefault("RUST_LOG", "fieldpost_transport=debug,info")
        with open(f"/out/{self.nickname}.log", "ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                "./rig_node", self.adapter, self.nickname, env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        return await self.listen(self.process.stdout, self.process.stdin)

    async def stop(self):
        """As a gateway that shuts down."""
        self.process.stdin.close()
        await asyncio.wait_for(self.process.wait(), LONG)

    async def kill(self):
        self.process.kill()
        await self.process.wait()


class Phone(Speaker):
    """One of the Bumble devices on the rig's air. See phone.py."""

    async def start(self):
        end = time.monotonic() + LONG
        while True:
            try:
                return await self.listen(*await asyncio.open_unix_connection(f"/tmp/{self.nickname}.sock"))
            except OSError as problem:
                if time.monotonic() > end:
                    raise Failed(f"the phone {self.nickname} does not answer") from problem
                await asyncio.sleep(0.2)


class Table:
    """Proves one thing after the other and says how long each took."""

    def __init__(self):
        self.failures = 0

    async def prove(self, name, proof):
        began = time.monotonic()
        try:
            note, result = await proof or "", "held"
        except Failed as problem:
            note, result = str(problem), "FAILED"
            self.failures += 1
        print(f"RESULT {result}\t{name}\t{time.monotonic() - began:.1f}\t{note}", flush=True)
        return result == "held"

    def end(self):
        sys.exit(1 if self.failures else 0)


def uptime():
    return time.monotonic()


def bluetoothd_pids():
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/comm", encoding="ascii") as name:
                    if name.read().strip() == "bluetoothd":
                        pids.append(int(entry))
            except OSError:
                pass
    return pids


def kill_bluetoothd():
    for pid in bluetoothd_pids():
        os.kill(pid, 9)


def start_bluetoothd():
    log = open("/out/bluetoothd-again.log", "ab")
    subprocess.Popen(["/usr/libexec/bluetooth/bluetoothd", "-n"], stdout=log, stderr=log,
                     start_new_session=True)


def set_powered(adapter, is_on):
    subprocess.run(
        ["dbus-send", "--system", "--print-reply", "--dest=org.bluez", f"/org/bluez/{adapter}",
         "org.freedesktop.DBus.Properties.Set", "string:org.bluez.Adapter1", "string:Powered",
         f"variant:boolean:{'true' if is_on else 'false'}"], check=True, capture_output=True)
