# rig: --adapters 4 --emulator bumble
"""One node with three others at once, and what its links carry beside raw frames of the same size."""
import asyncio
import time
from statistics import median

from rig import Failed, Node, Table

KIB = 1024
# As large as a fragment between gateways.
FRAMES, SIZE = 128, 511
ROUNDS = 5
# What a transfer reaches of what raw frames do.
REACH = 0.8


async def meet(node, others):
    for other in others:
        await node.wait("peer", timeout=120, id=other.id, hops=1)
        await other.wait("peer", timeout=120, id=node.id, hops=1)
    standing = {event["link"] for event in node.events if event["event"] == "up"}
    standing -= {event["link"] for event in node.events if event["event"] == "down"}
    if len(standing) < len(others):
        raise Failed(f"only {len(standing)} links stand")
    return f"{len(standing)} links at once"


async def broadcast(node, others):
    node.say(public="to all of you")
    for other in others:
        await other.wait("public", text="to all of you")


async def private(node, others):
    for other in others:
        node.mark(), other.mark()
        other.say(private={"to": node.id, "text": f"from {other.nickname}"})
        sent = await other.wait("command")
        await node.wait("private", text=f"from {other.nickname}")
        await other.wait("receipt", message_id=sent["id"], kind="read")


async def raw_frames(node, other):
    """Frames past the core, on the link that a transfer takes, as fast as it takes them."""
    node.mark()
    began = time.monotonic()
    other.say(frames={"to": node.id, "count": FRAMES, "bytes": SIZE})
    raw = await node.wait("frames", timeout=120)
    if raw["count"] != FRAMES:
        raise Failed(f"{raw['count']} of {FRAMES} raw frames came")
    return raw["bytes"] / (raw["at"] - began) / KIB


async def transfer(node, other):
    node.mark(), other.mark()
    began = time.monotonic()
    other.say(gateway={"to": node.id, "bytes": 64 * KIB})
    sending = await other.wait("sending")
    got = await node.wait("gateway", timeout=180, sha256=sending["sha256"])
    return 64 / (got["at"] - began)


async def throughput(node, other):
    """Rounds of raw frames and of a transfer, and the middle of each."""
    raw, carried = [], []
    for _ in range(ROUNDS):
        raw.append(await raw_frames(node, other))
        carried.append(await transfer(node, other))
    ratio = median(carried) / median(raw)
    note = f"raw {median(raw):.0f} KiB/s, envelope {median(carried):.0f} KiB/s, ratio {ratio:.2f}"
    if ratio < REACH:
        raise Failed(f"{note}, at least {REACH} is asked")
    return note


async def main():
    table = Table()
    node = await Node("hci0", "N").start()
    others = [await Node(f"hci{number}", f"P{number}").start() for number in (1, 2, 3)]
    if await table.prove("three neighbours at once", meet(node, others)):
        await table.prove("broadcast to all", broadcast(node, others))
        await table.prove("private messages from all", private(node, others))
        await table.prove("throughput of one", throughput(node, others[0]))
    for each in [node, *others]:
        await each.stop()
    table.end()


asyncio.run(main())
