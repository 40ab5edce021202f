# rig: --adapters 2
"""Two nodes, one adapter each, on BlueZ: everything a pair does, and what may break under it."""
import asyncio
import sys
import time

from rig import Failed, Node, Table, kill_bluetoothd, set_powered, start_bluetoothd

KIB = 1024


async def discover(a, b):
    began = time.monotonic()
    await a.wait("status", available=True)
    await b.wait("status", available=True)
    await a.wait("peer", id=b.id, hops=1)
    await b.wait("peer", id=a.id, hops=1)
    up = await a.wait("up")
    return f"frames of {up['max_frame']} bytes, known after {time.monotonic() - began:.1f} s"


async def private(a, b):
    for one, other, text in [(a, b, "to B"), (b, a, "to A"), (a, b, "x" * 1000)]:
        one.mark(), other.mark()
        one.say(private={"to": other.id, "text": text})
        sent = await one.wait("command")
        parts = -(-len(text) // 255)
        if parts == 1:
            await other.wait("private", text=text, **{"from": one.id})
        for kind in "delivered", "read":
            await one.wait("receipt", message_id=sent["id"], kind=kind)
    return "both ways, delivered and read"


async def public(a, b):
    a.mark(), b.mark()
    a.say(public="hello all")
    b.say(public="hello back")
    await b.wait("public", text="hello all")
    await a.wait("public", text="hello back")


async def carry(a, b, size, timeout=120):
    a.mark(), b.mark()
    began = time.monotonic()
    a.say(gateway={"to": b.id, "bytes": size})
    sending = await a.wait("sending")
    got = await b.wait("gateway", timeout=timeout, sha256=sending["sha256"])
    await a.wait("sent", timeout=timeout, id=sending["id"])
    took = got["at"] - began
    return f"{size // KIB} KiB in {took:.1f} s, {size / took / KIB:.1f} KiB/s"


async def again(a, b, size=64 * KIB):
    """Links come back by themselves, and what could not be carried meanwhile is carried then."""
    for node in a, b:
        node.mark()
    a.say(gateway={"to": b.id, "bytes": size})
    sending = await a.wait("sending")
    return sending


async def daemon_dies(a, b):
    sending = await again(a, b)
    # In the middle: the link carries frames now.
    await asyncio.sleep(0.5)
    if b.find("gateway", b.seen):
        raise Failed("the transfer was over before anything could break")
    kill_bluetoothd()
    await a.wait("down")
    await b.wait("down")
    await a.wait("status", available=False)
    start_bluetoothd()
    began = time.monotonic()
    await a.wait("up", timeout=90)
    await b.wait("status", available=True)
    back = time.monotonic() - began
    got = b.find("gateway", b.seen, sha256=sending["sha256"])
    try:
        if not got:
            await b.wait("gateway", timeout=90, sha256=sending["sha256"])
        ended = "the transfer went on and ended whole"
    except Failed:
        failed = a.find("failed", a.seen, id=sending["id"])
        if not failed:
            raise
        ended = f"the transfer failed and said so: {failed['reason']}"
        await carry(a, b, 4 * KIB)
    return f"links again {back:.1f} s after its start; {ended}"


async def adapter_off(a, b):
    a.mark(), b.mark()
    set_powered("hci0", False)
    await a.wait("status", available=False)
    await a.wait("down")
    await b.wait("down")
    text = a.find("status", a.seen, available=False)["text"]
    a.mark(), b.mark()
    began = time.monotonic()
    set_powered("hci0", True)
    await a.wait("up", timeout=90)
    back = time.monotonic() - began
    await b.wait("up", timeout=90)
    await carry(a, b, 4 * KIB)
    return f"\"{text}\"; links again {back:.1f} s after power"


async def process_dies(a, b):
    """The other's process is killed: its links stand in the system, and must be found dead."""
    a.mark()
    await b.kill()
    await a.wait("down", timeout=30)
    b2 = await Node("hci1", "B2").start()
    await a.wait("peer", timeout=90, id=b2.id, hops=1)
    a.mark()
    await carry(a, b2, 4 * KIB)
    await b2.stop()
    return "noticed, and a new process is taken up"


async def main():
    table = Table()
    a, b = await asyncio.gather(Node("hci0", "A").start(), Node("hci1", "B").start())
    if await table.prove("discover, connect, announce", discover(a, b)):
        await table.prove("private messages with receipts", private(a, b))
        await table.prove("broadcast", public(a, b))
        await table.prove("envelope of 64 KiB", carry(a, b, 64 * KIB))
        if "short" not in sys.argv:
            await table.prove("bluetoothd killed in mid-transfer and started again", daemon_dies(a, b))
            await table.prove("adapter off and on", adapter_off(a, b))
            await table.prove("the other process killed", process_dies(a, b))
    a.say(counters=True)
    await a.stop()
    table.end()


asyncio.run(main())
