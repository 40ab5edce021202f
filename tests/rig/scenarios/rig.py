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
LONG = 60


class Failed(Exception):
    """Something did not come to be."""


class Node:
    """One `rig_node`, its events so far and its child process."""

    def __init__(self, adapter, nickname):
        self.adapter, self.nickname = adapter, nickname
        self.events, self.seen, self.changed = [], 0, asyncio.Event()
        self.process = self.id = None

    async def start(self):
        log = open(f"/out/{self.nickname}.log", "ab")
        environment = dict(os.environ, RUST_LOG=os.environ.get("RUST_LOG", "fieldpost_transport=debug,info"))
        self.process = await asyncio.create_subprocess_exec(
            "./rig_node", self.adapter, self.nickname, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        self.reader = asyncio.create_task(self._read())
        self.id = (await self.wait("node"))["id"]
        return self

    async def _read(self):
        record = open(f"/out/{self.nickname}.events", "a", encoding="utf-8")
        async for line in self.process.stdout:
            event = json.loads(line)
            event["at"] = time.monotonic()
            record.write(f"{event['at']:.3f} {line.decode()}")
            record.flush()
            self.events.append(event)
            self.changed.set()

    def say(self, **command):
        self.process.stdin.write((json.dumps(command) + "\n").encode())

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
            if left <= 0 or (self.process.returncode is not None and self.reader.done()):
                raise Failed(f"{self.nickname}: no {event_kind} {wanted} within {timeout} s")
            try:
                await asyncio.wait_for(self.changed.wait(), left)
            except asyncio.TimeoutError:
                pass

    async def stop(self):
        """As a gateway that shuts down."""
        self.process.stdin.close()
        await asyncio.wait_for(self.process.wait(), LONG)

    async def kill(self):
        self.process.kill()
        await self.process.wait()


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
