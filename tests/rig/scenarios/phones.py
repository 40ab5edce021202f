# rig: --adapters 1 --peer phone_found.py --peer phone_finding.py
"""One node among two phones that are not ours: one is found and has a small MTU, one finds us."""
import asyncio
import random
import subprocess
import sys
import time

from rig import Failed, Node, Phone, Table

LONG_TEXT = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789 ", k=1500))


async def agrees():
    """The peer that judges is judged first."""
    checked = subprocess.run([sys.executable, "check_peer.py", "bitchat.json"], capture_output=True, text=True,
                             check=False)
    if checked.returncode:
        raise Failed(checked.stderr.strip().splitlines()[-1])
    return checked.stdout.strip()


async def met(node, phone, max_frame):
    # They may have met while we looked elsewhere.
    node.seen = phone.seen = 0
    await phone.wait("up", max_frame=max_frame)
    await node.wait("peer", id=phone.id, hops=1)
    told = await phone.wait("peer", id=node.id)
    if told["ttl"] != 7:
        raise Failed(f"its announce came with TTL {told['ttl']}")
    return f"frames of {max_frame} bytes"


async def node_first(node, phone):
    """The node begins the handshake, since it has something to say."""
    node.mark(), phone.mark()
    node.say(private={"to": phone.id, "text": "from the node"})
    sent = await node.wait("command")
    session = await phone.wait("session", **{"with": node.id})
    await phone.wait("private", text="from the node", **{"from": node.id})
    for kind in "delivered", "read":
        await node.wait("receipt", message_id=sent["id"], kind=kind, to=phone.id)
    await phone.wait("peer_state", proven=True)
    if session["as"] != "responder":
        raise Failed("the phone was the initiator")
    return "XX, node initiates; delivered and read; signing key proven" + (
        "; handshake in fragments" if session["fragmented"] else "")


async def phone_first(node, phone):
    """The phone begins a handshake, anew if there was one."""
    # For a second after a handshake, another's first message counts as crossed with ours (5.2).
    await asyncio.sleep(1.5)
    node.mark(), phone.mark()
    phone.say(handshake=node.id)
    session = await phone.wait("session", **{"with": node.id})
    if session["as"] != "initiator":
        raise Failed("the phone was the responder")
    phone.say(private={"to": node.id, "text": "from the phone"})
    sent = await phone.wait("command")
    await node.wait("private", text="from the phone", **{"from": phone.id})
    for kind in "delivered", "read":
        await phone.wait("receipt", message_id=sent["id"], kind=kind)
    node.say(private={"to": phone.id, "text": "and back"})
    await phone.wait("private", text="and back")
    return "XX, phone initiates; delivered and read"


async def fragments(node, phone):
    node.mark(), phone.mark()
    node.say(public=LONG_TEXT)
    whole = await phone.wait("reassembled", kind=2)
    await phone.wait("public", text=LONG_TEXT, fragmented=True, **{"from": node.id})
    phone.say(public=LONG_TEXT[::-1])
    await node.wait("public", text=LONG_TEXT[::-1], **{"from": phone.id})
    return f"1500 characters both ways, {whole['count']} fragments to the phone"


async def paced(node, phone):
    """What is for phones keeps to their pace (6.2), however much more the link would take."""
    node.mark(), phone.mark()
    node.say(public=LONG_TEXT * 8)
    whole = await phone.wait("reassembled", kind=2)
    gap = whole["milliseconds"] / (whole["count"] - 1)
    if whole["count"] < 8 or gap < 25:
        raise Failed(f"{whole['count']} fragments, {gap:.0f} ms apart")
    return f"{whole['count']} fragments, {gap:.0f} ms apart"


async def forged(node, phone, other):
    """What a hostile phone says in another's name, or without a signature, is not believed."""
    node.mark()
    phone.seen = 0
    await phone.wait("peer", id=other.id)
    phone.say(unsigned="nobody signed this")
    phone.say(forge={"victim": other.id, "nickname": "impostor"})
    phone.say(public="signed")
    await node.wait("public", text="signed")
    if node.find("public", node.seen, text="nobody signed this"):
        raise Failed("an unsigned message was believed")
    if node.find("peer", node.seen, nickname="impostor"):
        raise Failed("a forged announce was believed")
    await node.wait("other")
    return node.find("other", node.seen)["text"]


async def relayed(node, one, other):
    """The phones do not hear each other: the node stands between them."""
    one.seen = other.seen = 0
    await one.wait("peer", id=other.id)
    await other.wait("peer", id=one.id)
    one.mark(), other.mark()
    one.say(private={"to": other.id, "text": "through the node"})
    sent = await one.wait("command")
    await other.wait("private", text="through the node", **{"from": one.id})
    await one.wait("receipt", message_id=sent["id"], kind="read")
    return "announces, XX, message and receipts across two hops"


async def clean(*phones):
    for phone in phones:
        for kind in ("undecodable", "too_large", "stale", "unverified", "bad_announce", "bad_fragment",
                     "bad_set", "bad_handshake", "bad_private", "unopened", "error"):
            event = phone.find(kind, 0)
            # A frame under an old key may arrive while a new handshake is under way.
            if event and kind != "unopened":
                raise Failed(f"{phone.nickname}: {event}")
    return "every frame decoded, fitted and verified"


async def main():
    table = Table()
    await table.prove("the phones' own protocol against the vectors", agrees())
    node = await Node("hci0", "N").start()
    found, finding = await asyncio.gather(Phone("found").start(), Phone("finding").start())
    began = time.monotonic()
    for phone, max_frame in (found, 182), (finding, 512):
        if not await table.prove(f"{phone.nickname}: meets", met(node, phone, max_frame)):
            continue
        await table.prove(f"{phone.nickname}: node speaks first", node_first(node, phone))
        await table.prove(f"{phone.nickname}: phone speaks first", phone_first(node, phone))
        await table.prove(f"{phone.nickname}: fragments", fragments(node, phone))
    await table.prove("the pace of fragments to phones", paced(node, finding))
    await table.prove("phone to phone through the node", relayed(node, found, finding))
    await table.prove("what the phones got was sound", clean(found, finding))
    await table.prove("forgeries of a phone", forged(node, finding, found))
    print(f"phones took {time.monotonic() - began:.1f} s", flush=True)
    node.say(counters=True)
    await node.stop()
    table.end()


asyncio.run(main())
