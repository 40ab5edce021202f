"""Checks the test's own peer (bitchat.py) against the published vectors, before it judges others.

    check_peer.py ../../vectors/bitchat.json
"""
import json
import sys

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import bitchat


def check(vectors):
    counts = {}
    for vector in vectors:
        kind, given, expected = vector["kind"], vector["inputs"], vector["expected"]
        if kind == "packet" and given.get("version") == 1 and "signing_preimage" in expected:
            if int(expected["wire_unpadded"][22:24], 16) & 0x10:
                continue    # a solicited answer, which this peer never gives
            packet = bitchat.decode(bytes.fromhex(expected["wire_unpadded"]))
            # A compressed payload stays as its encoder made it.
            assert packet.encode().hex() == expected["wire_unpadded"], vector["id"]
            preimage = bitchat.padded(packet.encode(for_signing=True)).hex()
            assert preimage == expected["signing_preimage"], vector["id"]
        elif kind == "noise_xx":
            ends = [bitchat.Noise(key(given[f"{role}_static_private"]), role == "initiator",
                                  key(given[f"{role}_ephemeral_private"]))
                    for role in ("initiator", "responder")]
            for number, name in enumerate(("message1", "message2", "message3")):
                message = ends[number % 2].write()
                assert message.hex() == expected[name], name
                ends[(number + 1) % 2].read(message)
            send, receive = ends[0].split()
            assert (receive, send) == ends[1].split()
            assert send.hex() == expected["k_initiator_to_responder"]
            assert ends[0].hash.hex() == expected["handshake_hash"]
        elif kind == "padding":
            for row in expected["rows"]:
                assert len(bitchat.padded(b"\xee" * row["len"])) == row["padded_len"], row
        elif kind == "decode_negative":
            for frame in given.get("frames", []):
                frame = frame if isinstance(frame, str) else frame.get("frame", "")
                assert bitchat.decode(bytes.fromhex(frame)) is None, vector["id"]
        else:
            continue
        counts[kind] = counts.get(kind, 0) + 1
    assert counts.get("packet", 0) > 3 and counts.get("noise_xx") and counts.get("padding"), counts
    print("the test's peer agrees with the vectors:", counts)


def key(text):
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(text))


with open(sys.argv[1], encoding="utf-8") as file:
    check(json.load(file)["vectors"])
