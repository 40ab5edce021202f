"""A BitChat peer written from the protocol reference alone, in another language and with other
libraries than the service: what agrees with it does so because both follow the reference.

No I/O and no clock: `Peer.take` is given frames and the time, `Peer.tell` is told what happened, and
`Peer.send` puts frames on links. Section numbers are those of the reference.
"""
import hashlib
import hmac
import os
import struct
import zlib

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

ANNOUNCE, MESSAGE, LEAVE, HANDSHAKE, ENCRYPTED, FRAGMENT, SYNC = 1, 2, 3, 0x10, 0x11, 0x20, 0x21
PRIVATE, READ, DELIVERED, PEER_STATE = 1, 2, 3, 0x21
HAS_RECIPIENT, HAS_SIGNATURE, COMPRESSED, HAS_ROUTE = 1, 2, 4, 8
BROADCAST = b"\xff" * 8


# --- Packets (2) ------------------------------------------------------------------------------

def deflate(payload):
    """2.2, the rule for encoders; None where the payload stays as it is."""
    if len(payload) < 100 or len(set(payload)) / min(len(payload), 256) >= 0.9:
        return None
    encoder = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = encoder.compress(payload) + encoder.flush()
    return packed if len(packed) < len(payload) else None


def padded(encoded):
    """2.4."""
    for target in (256, 512, 1024, 2048):
        if target >= len(encoded) + 16:
            count = target - len(encoded)
            return encoded + bytes([count]) * count if count <= 255 else encoded
    return encoded


class Packet:
    def __init__(self, kind, ttl, timestamp, sender, payload, recipient=None, signature=None):
        self.kind, self.ttl, self.timestamp, self.sender = kind, ttl, timestamp, sender
        self.payload, self.recipient, self.signature = payload, recipient, signature
        packed = deflate(payload)
        # What is on the wire: the size field of a compressed payload belongs to it.
        self.body = payload if packed is None else struct.pack(">H", len(payload)) + packed
        self.is_compressed = packed is not None

    def encode(self, for_signing=False):
        signature = None if for_signing else self.signature
        flags = (HAS_RECIPIENT if self.recipient else 0) | (HAS_SIGNATURE if signature else 0)
        flags |= COMPRESSED if self.is_compressed else 0
        head = struct.pack(">BBBQBH", 1, self.kind, 0 if for_signing else self.ttl, self.timestamp,
                           flags, len(self.body))
        return head + self.sender + (self.recipient or b"") + self.body + (signature or b"")

    def sign(self, key):
        self.signature = key.sign(padded(self.encode(for_signing=True)))
        return self

    def is_signed_by(self, key):
        try:
            preimage = padded(self.encode(for_signing=True))
            Ed25519PublicKey.from_public_bytes(key).verify(self.signature or b"", preimage)
            return True
        except (InvalidSignature, ValueError):
            return False


def decode(frame):
    """2.5: as it came, else without what looks like padding; None if it is no packet."""
    packet = decode_exactly(frame)
    count = frame[-1] if frame else 0
    if packet is None and 0 < count <= len(frame) and frame.endswith(bytes([count]) * count):
        packet = decode_exactly(frame[:-count])
    return packet


def decode_exactly(frame):
    if len(frame) < 22 or frame[0] not in (1, 2):
        return None
    version, kind, ttl, timestamp, flags = struct.unpack(">BBBQB", frame[:12])
    size = ">H" if version == 1 else ">I"
    at = 12 + struct.calcsize(size)
    length, = struct.unpack(size, frame[12:at])
    sender, at = frame[at:at + 8], at + 8
    recipient = None
    if flags & HAS_RECIPIENT:
        recipient, at = frame[at:at + 8], at + 8
    if flags & HAS_ROUTE and version == 2:
        at += 1 + 8 * (frame[at] if at < len(frame) else 0)
    body, at = frame[at:at + length], at + length
    signature = None
    if flags & HAS_SIGNATURE:
        signature, at = frame[at:at + 64], at + 64
    if at > len(frame):
        return None
    payload = body
    if flags & COMPRESSED:
        width = struct.calcsize(size)
        if len(body) <= width:
            return None
        try:
            payload = zlib.decompress(body[width:], -15)
        except zlib.error:
            return None
        if len(payload) != struct.unpack(size, body[:width])[0]:
            return None
    packet = Packet(kind, ttl, timestamp, sender, payload, recipient, signature)
    # As it came: another encoder's bytes may differ, and are what was signed (2.3, as Android does).
    packet.body, packet.is_compressed = body, bool(flags & COMPRESSED)
    return packet


def fields(payload, width=1):
    """Type, length, value, as announces (3.2) and private messages (3.3) have them."""
    at, found = 0, {}
    while at + 1 + width <= len(payload):
        kind = payload[at]
        length = int.from_bytes(payload[at + 1:at + 1 + width], "big")
        at += 1 + width
        if at + length > len(payload):
            return None
        found[kind] = payload[at:at + length]
        at += length
    return found


def field(kind, value):
    return bytes([kind, len(value)]) + value


# --- Noise XX (5) -----------------------------------------------------------------------------

class Noise:
    """Noise_XX_25519_ChaChaPoly_SHA256, empty prologue, empty payloads."""

    NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"

    def __init__(self, static, is_initiator, ephemeral=None):
        self.static, self.is_initiator = static, is_initiator
        self.ephemeral = ephemeral or X25519PrivateKey.generate()
        self.hash = self.chaining = self.NAME
        self.key, self.nonce = None, 0
        self.remote_static = self.remote_ephemeral = None
        self.step = 0
        self.mix_hash(b"")

    def mix_hash(self, data):
        self.hash = hashlib.sha256(self.hash + data).digest()

    def derive(self, secret):
        root = hmac.digest(self.chaining, secret, "sha256")
        first = hmac.digest(root, b"\x01", "sha256")
        return first, hmac.digest(root, first + b"\x02", "sha256")

    def mix_key(self, own, remote):
        secret = own.exchange(X25519PublicKey.from_public_bytes(remote))
        self.chaining, self.key = self.derive(secret)
        self.nonce = 0

    def seal(self, plain):
        sealed = plain
        if self.key:
            nonce = struct.pack("<4xQ", self.nonce)
            sealed, self.nonce = ChaCha20Poly1305(self.key).encrypt(nonce, plain, self.hash), self.nonce + 1
        self.mix_hash(sealed)
        return sealed

    def open(self, sealed):
        plain = sealed
        if self.key:
            nonce = struct.pack("<4xQ", self.nonce)
            plain, self.nonce = ChaCha20Poly1305(self.key).decrypt(nonce, sealed, self.hash), self.nonce + 1
        self.mix_hash(sealed)
        return plain

    def write(self):
        own, message = public(self.ephemeral), b""
        if self.step == 0:
            self.mix_hash(own)
            message = own + self.seal(b"")
        elif self.step == 1:
            self.mix_hash(own)
            self.mix_key(self.ephemeral, self.remote_ephemeral)
            sealed = self.seal(public(self.static))
            self.mix_key(self.static, self.remote_ephemeral)
            message = own + sealed + self.seal(b"")
        else:
            sealed = self.seal(public(self.static))
            self.mix_key(self.static, self.remote_ephemeral)
            message = sealed + self.seal(b"")
        self.step += 1
        return message

    def read(self, message):
        if self.step == 0:
            self.remote_ephemeral = message[:32]
            self.mix_hash(message[:32])
            self.open(message[32:])
        elif self.step == 1:
            self.remote_ephemeral = message[:32]
            self.mix_hash(message[:32])
            self.mix_key(self.ephemeral, self.remote_ephemeral)
            self.remote_static = self.open(message[32:80])
            self.mix_key(self.ephemeral, self.remote_static)
            self.open(message[80:])
        else:
            self.remote_static = self.open(message[:48])
            self.mix_key(self.ephemeral, self.remote_static)
            self.open(message[48:])
        self.step += 1

    def split(self):
        """The keys to send with and to receive with."""
        first, second = self.derive(b"")
        return (first, second) if self.is_initiator else (second, first)


class Session:
    """5.3: each frame carries its counter."""

    def __init__(self, send_key, receive_key):
        self.sending, self.receiving = ChaCha20Poly1305(send_key), ChaCha20Poly1305(receive_key)
        self.counter, self.seen = 0, set()

    def seal(self, plain):
        counter, self.counter = self.counter, self.counter + 1
        return struct.pack(">I", counter) + self.sending.encrypt(struct.pack("<4xQ", counter), plain, None)

    def open(self, frame):
        counter, = struct.unpack(">I", frame[:4])
        if counter in self.seen:
            return None
        plain = self.receiving.decrypt(struct.pack("<4xQ", counter), frame[4:], None)
        self.seen.add(counter)
        return plain


def public(key):
    return key.public_key().public_bytes_raw()


# --- A peer -----------------------------------------------------------------------------------

class Peer:
    """One phone. `send(link, frame)` and `tell(event)` are its surroundings'."""

    def __init__(self, nickname, send, tell, now_ms):
        self.nickname, self.send, self.tell, self.now_ms = nickname, send, tell, now_ms
        self.static, self.signing = X25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self.id = hashlib.sha256(public(self.static)).digest()[:8]
        self.links = {}      # link: the largest frame it takes
        self.peers = {}      # id: (noise key, signing key)
        self.handshakes, self.sessions = {}, {}
        self.seen, self.sets, self.waiting = set(), {}, {}
        self.stamp = 0

    def timestamp(self):
        self.stamp = max(self.now_ms(), self.stamp + 1)
        return self.stamp

    def link_up(self, link, max_frame):
        self.links[link] = max_frame
        self.announce()

    def link_down(self, link):
        self.links.pop(link, None)

    # Speaking

    def announce(self):
        # 3.2, as Android writes it: it takes private media.
        payload = (field(1, self.nickname.encode()) + field(2, public(self.static)) +
                   field(3, public(self.signing)) + field(5, b"\x00\x01"))
        self.emit(Packet(ANNOUNCE, 7, self.timestamp(), self.id, payload).sign(self.signing))

    def forge(self, victim, nickname):
        """An announce under another's name: its Noise key, but our signing key (4.3)."""
        payload = (field(1, nickname.encode()) + field(2, self.peers[victim][0]) +
                   field(3, public(self.signing)))
        self.emit(Packet(ANNOUNCE, 7, self.timestamp(), victim, payload).sign(self.signing))

    def say_publicly(self, text):
        packet = Packet(MESSAGE, 7, self.timestamp(), self.id, text.encode(), BROADCAST)
        self.emit(packet.sign(self.signing))

    def say_publicly_unsigned(self, text):
        self.emit(Packet(MESSAGE, 7, self.timestamp(), self.id, text.encode(), BROADCAST))

    def say_privately(self, to, text, message_id):
        plain = bytes([PRIVATE]) + field(0, message_id.encode()) + field(1, text.encode())
        if to in self.sessions:
            self.encrypt(to, plain)
        else:
            self.waiting.setdefault(to, []).append(plain)
            self.begin(to)

    def begin(self, to):
        """A new handshake, whether there is a session or not."""
        self.handshakes[to] = noise = Noise(self.static, True)
        self.emit(Packet(HANDSHAKE, 7, self.timestamp(), self.id, noise.write(), to))

    def encrypt(self, to, plain):
        sealed = self.sessions[to].seal(plain)
        self.emit(Packet(ENCRYPTED, 7, self.timestamp(), self.id, sealed, to))

    def emit(self, packet):
        encoded = packet.encode()
        if packet.kind in (HANDSHAKE, ENCRYPTED):
            encoded = padded(encoded)
        for link, max_frame in list(self.links.items()):
            if len(encoded) <= max_frame:
                self.send(link, encoded)
            else:
                for fragment in self.fragments(packet, encoded, max_frame):
                    self.send(link, fragment)

    def fragments(self, packet, encoded, max_frame):
        """6.1."""
        # Compression may save one byte and cost two for the size.
        size = min(469, max_frame - 22 - 8 - 13 - 2)
        name, count = os.urandom(8), -(-len(encoded) // size)
        for index in range(count):
            payload = (name + struct.pack(">HHB", index, count, packet.kind) +
                       encoded[index * size:(index + 1) * size])
            yield Packet(FRAGMENT, packet.ttl, packet.timestamp, packet.sender, payload,
                         packet.recipient).encode()

    # Listening

    def take(self, link, frame):
        packet = decode(frame)
        if packet is None:
            self.tell({"event": "undecodable", "bytes": len(frame)})
            return
        if len(frame) > self.links.get(link, 512):
            self.tell({"event": "too_large", "bytes": len(frame)})
        self.receive(packet, is_whole=False)

    def receive(self, packet, is_whole):
        if packet.sender == self.id:
            return
        key = (packet.sender, packet.timestamp, packet.kind, hashlib.sha256(packet.payload).digest())
        if key in self.seen:
            return
        self.seen.add(key)
        # 2.6: iOS drops what is two minutes off.
        if abs(self.now_ms() - packet.timestamp) > 120_000:
            self.tell({"event": "stale", "kind": packet.kind})
            return
        is_ours = packet.recipient in (None, BROADCAST, self.id)
        if packet.kind == FRAGMENT and not is_whole:
            if is_ours:
                self.collect(packet)
        elif packet.kind == ANNOUNCE:
            self.take_announce(packet)
        elif packet.kind == MESSAGE and is_ours:
            known = self.peers.get(packet.sender)
            if known and packet.is_signed_by(known[1]):
                self.tell({"event": "public", "from": packet.sender.hex(),
                           "text": packet.payload.decode(), "fragmented": is_whole})
            else:
                self.tell({"event": "unverified", "kind": packet.kind})
        elif packet.recipient == self.id and packet.kind == HANDSHAKE:
            self.take_handshake(packet, is_whole)
        elif packet.recipient == self.id and packet.kind == ENCRYPTED:
            self.take_encrypted(packet, is_whole)

    def collect(self, packet):
        name, (index, count, kind) = packet.payload[:8], struct.unpack(">HHB", packet.payload[8:13])
        if not 1 <= count <= 256 or index >= count:
            self.tell({"event": "bad_fragment", "count": count})
            return
        began, parts = self.sets.setdefault((packet.sender, name), (self.now_ms(), {}))
        parts[index] = packet.payload[13:]
        if len(parts) == count:
            del self.sets[packet.sender, name]
            took = self.now_ms() - began
            whole = decode(b"".join(parts[place] for place in range(count)))
            if whole is None or whole.kind != kind:
                self.tell({"event": "bad_set", "count": count})
            else:
                whole.ttl = 0
                self.tell({"event": "reassembled", "kind": kind, "count": count, "milliseconds": took})
                self.receive(whole, is_whole=True)

    def take_announce(self, packet):
        """4.2."""
        told = fields(packet.payload)
        problem = None
        if not told or len(told.get(2, b"")) != 32 or len(told.get(3, b"")) != 32 or 1 not in told:
            problem = "incomplete"
        elif hashlib.sha256(told[2]).digest()[:8] != packet.sender:
            problem = "its id is not that of its key"
        elif not packet.is_signed_by(told[3]):
            problem = "its signature is wrong"
        elif self.peers.get(packet.sender, (told[2], told[3])) != (told[2], told[3]):
            problem = "other keys than before"
        if problem:
            self.tell({"event": "bad_announce", "problem": problem, "id": packet.sender.hex()})
            return
        is_new = packet.sender not in self.peers
        self.peers[packet.sender] = told[2], told[3]
        if is_new:
            self.tell({"event": "peer", "id": packet.sender.hex(), "nickname": told[1].decode(),
                       "ttl": packet.ttl})

    def take_handshake(self, packet, is_whole):
        remote, message = packet.sender, packet.payload
        noise = self.handshakes.get(remote)
        try:
            if len(message) == 32:
                # 5.2: the lower id stays the initiator.
                if noise and noise.is_initiator and self.id.hex() < remote.hex():
                    return
                self.handshakes[remote] = noise = Noise(self.static, False)
                noise.read(message)
                self.emit(Packet(HANDSHAKE, 7, self.timestamp(), self.id, noise.write(), remote))
                return
            if noise is None:
                return
            noise.read(message)
            if noise.is_initiator:
                self.emit(Packet(HANDSHAKE, 7, self.timestamp(), self.id, noise.write(), remote))
        except InvalidTag:
            self.tell({"event": "bad_handshake", "from": remote.hex()})
            return
        if hashlib.sha256(noise.remote_static).digest()[:8] != remote:
            self.tell({"event": "bad_handshake", "from": remote.hex()})
            return
        del self.handshakes[remote]
        self.sessions[remote] = Session(*noise.split())
        self.tell({"event": "session", "with": remote.hex(), "fragmented": is_whole,
                   "as": "initiator" if noise.is_initiator else "responder"})
        # 4.4: each side says once what it can do, and which signing key is its own.
        self.encrypt(remote, bytes([PEER_STATE, 1]) + field(1, b"\x00\x01") + field(2, public(self.signing)))
        for plain in self.waiting.pop(remote, []):
            self.encrypt(remote, plain)

    def take_encrypted(self, packet, is_whole):
        remote = packet.sender
        try:
            plain = self.sessions[remote].open(packet.payload)
        except (KeyError, InvalidTag):
            self.tell({"event": "unopened", "from": remote.hex()})
            return
        if not plain:
            return
        kind, body = plain[0], plain[1:]
        if kind == PRIVATE:
            told = fields(body)
            # 3.3: both, and nothing else.
            if told is None or set(told) != {0, 1}:
                self.tell({"event": "bad_private"})
                return
            self.tell({"event": "private", "from": remote.hex(), "message_id": told[0].decode(),
                       "text": told[1].decode(), "fragmented": is_whole})
            for receipt in DELIVERED, READ:
                self.encrypt(remote, bytes([receipt]) + told[0])
        elif kind in (DELIVERED, READ):
            self.tell({"event": "receipt", "from": remote.hex(), "message_id": body.decode(),
                       "kind": "read" if kind == READ else "delivered"})
        elif kind == PEER_STATE:
            told = fields(body[1:])
            known = self.peers.get(remote)
            is_proven = bool(told and known and told.get(2) == known[1])
            self.tell({"event": "peer_state", "from": remote.hex(), "proven": is_proven})
        else:
            self.tell({"event": "unknown_plaintext", "type": kind})
