//! The mesh's unit between peers, versions 1 and 2 (BitChat protocol reference, section 2).
//!
//! A decoded packet keeps the compressed form that it came in, so that encoding it again gives the
//! bytes that were signed, whoever's encoder made them.

mod compress;
mod padding;
mod sign;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{
    id::MeshId,
    read::{Reader, Short},
};

pub use compress::THRESHOLD as COMPRESSION_THRESHOLD;
pub use padding::{pad, unpad};

/// The largest payload, compressed or not: iOS's limit, the smaller of the two (section 2.5).
pub const MAX_PAYLOAD: usize = 1_179_760;
/// How many hops a packet may start with.
pub const MAX_HOPS: u8 = 7;
/// The shortest packet: a version 1 header and a sender.
const MIN_LEN: usize = 22;
const MIN_LEN_V2: usize = 24;

const HAS_RECIPIENT: u8 = 0x01;
const HAS_SIGNATURE: u8 = 0x02;
const IS_COMPRESSED: u8 = 0x04;
const HAS_ROUTE: u8 = 0x08;
const IS_SOLICITED: u8 = 0x10;

/// What a packet is about (section 3.1). Unknown ones are relayed like any other.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PacketType(pub u8);

impl PacketType {
    /// Who is there: keys and a nickname, signed.
    pub const ANNOUNCE: Self = Self(0x01);
    /// Public text.
    pub const MESSAGE: Self = Self(0x02);
    /// A farewell.
    pub const LEAVE: Self = Self(0x03);
    /// Sealed mail for somebody who is away; iOS only.
    pub const COURIER: Self = Self(0x04);
    /// One message of a Noise handshake.
    pub const NOISE_HANDSHAKE: Self = Self(0x10);
    /// A Noise transport frame.
    pub const NOISE_ENCRYPTED: Self = Self(0x11);
    /// A part of a packet too large for one frame.
    pub const FRAGMENT: Self = Self(0x20);
    /// What a neighbour already has, so that the rest can be sent.
    pub const REQUEST_SYNC: Self = Self(0x21);
    /// A file in clear.
    pub const FILE: Self = Self(0x22);
    /// A board post or its removal; iOS only.
    pub const BOARD: Self = Self(0x23);
    /// One-time keys for sealed mail; iOS only.
    pub const PREKEYS: Self = Self(0x24);
    /// A group's message; iOS only.
    pub const GROUP: Self = Self(0x25);
    /// Asks a peer for a pong; iOS only.
    pub const PING: Self = Self(0x26);
    /// Answers a ping; iOS only.
    pub const PONG: Self = Self(0x27);
    /// A Nostr event to or from a gateway; iOS only.
    pub const CARRIER: Self = Self(0x28);
    /// Live voice for everybody.
    pub const VOICE: Self = Self(0x29);
    /// Draft of rotating names; parsed and ignored.
    pub const ANNOUNCE_V2: Self = Self(0x2c);

    /// Whether the apps pad it on the wire.
    fn is_padded(self) -> bool {
        matches!(self, Self::NOISE_HANDSHAKE | Self::NOISE_ENCRYPTED)
    }
}

/// Which of the two headers a packet has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// Payloads to 65,535 bytes, no route.
    V1,
    /// Larger payloads, and a route if there is one.
    V2,
}

/// One packet. Build it with [`new`](Self::new), so that its payload is compressed by the rules.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packet {
    /// The header it has.
    pub version: Version,
    /// What it is about.
    pub kind: PacketType,
    /// How many links it may still cross. Not signed.
    pub hops_left: u8,
    /// When it was made, in milliseconds since 1970.
    pub timestamp_ms: u64,
    /// Who made it.
    pub sender: MeshId,
    /// Whom it is for. `None` and [`MeshId::BROADCAST`] both mean everybody, but are different
    /// bytes under the signature.
    pub recipient: Option<MeshId>,
    /// The relays it is to pass, in order; version 2 only.
    pub route: Vec<MeshId>,
    /// Whether it answers a request for sync. Not signed.
    pub solicited: bool,
    /// Ed25519 over [`signing_preimage`](Self::signing_preimage).
    pub signature: Option<[u8; 64]>,
    payload: Vec<u8>,
    /// The payload as it travels, if it travels compressed.
    compressed: Option<Vec<u8>>,
}

/// Why received bytes are not a packet.
///
/// They came off the air, so none of these is a bug on our side: count the packet and drop it.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum DecodeError {
    /// The packet ends before its header says it should.
    #[error("packet is {missing} bytes short")]
    Truncated {
        /// How many bytes are not there.
        missing: usize,
    },
    /// There are versions 1 and 2.
    #[error("unsupported packet version {0}")]
    UnsupportedVersion(u8),
    /// It says that it is larger than anybody accepts.
    #[error("payload of {size} bytes is over the limit of {MAX_PAYLOAD}")]
    TooLarge {
        /// The size it claims.
        size: usize,
    },
    /// The compressed form breaks a rule of section 2.2.
    #[error("{length} compressed bytes do not inflate to {size}")]
    Compression {
        /// How many compressed bytes there are.
        length: usize,
        /// What they should become.
        size: usize,
    },
}

impl From<Short> for DecodeError {
    fn from(short: Short) -> Self {
        Self::Truncated { missing: short.missing }
    }
}

/// What one needs to say to make a packet; the rest follows.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// What it is about.
    pub kind: PacketType,
    /// How many links it may cross.
    pub hops_left: u8,
    /// Milliseconds since 1970.
    pub timestamp_ms: u64,
    /// Who makes it.
    pub sender: MeshId,
    /// Whom it is for, or everybody.
    pub recipient: Option<MeshId>,
}

impl Packet {
    /// A packet without signature or route. Files and payloads over 65,535 bytes have version 2,
    /// all others version 1.
    pub fn new(header: Header, payload: Vec<u8>) -> Self {
        let is_file = header.kind == PacketType::FILE;
        let version = if is_file { Version::V2 } else { Version::V1 };
        Self::with_version(version, header, payload)
    }

    /// The same with the version given; what version 1 cannot carry gets version 2 all the same.
    pub fn with_version(version: Version, header: Header, payload: Vec<u8>) -> Self {
        let compressed = compress::compress(&payload);
        Self { compressed, ..Self::uncompressed(version, header, payload) }
    }

    /// The same for what cannot be compressed, such as pieces of ciphertext: trying costs more than all
    /// else that is done with a packet.
    pub(crate) fn uncompressed(version: Version, header: Header, payload: Vec<u8>) -> Self {
        let version = if payload.len() > 65_535 { Version::V2 } else { version };
        Self {
            version,
            kind: header.kind,
            hops_left: header.hops_left,
            timestamp_ms: header.timestamp_ms,
            sender: header.sender,
            recipient: header.recipient,
            route: Vec::new(),
            solicited: false,
            signature: None,
            payload,
            compressed: None,
        }
    }

    /// What it says, inflated.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Whether it travels compressed, so that Apple's verifiers need Apple's encoder to give the
    /// same bytes as its sender's (section 2.3).
    pub fn is_compressed(&self) -> bool {
        self.compressed.is_some()
    }

    /// Whether it is for everybody.
    pub fn is_broadcast(&self) -> bool {
        self.recipient.is_none_or(|recipient| recipient == MeshId::BROADCAST)
    }

    /// Reads one frame, padded or not; trailing bytes are ignored (section 2.5).
    ///
    /// # Errors
    ///
    /// Anything that the apps reject. Never allocates more than twice [`MAX_PAYLOAD`].
    pub fn decode(frame: &[u8]) -> Result<Self, DecodeError> {
        Self::read(frame).or_else(|error| match unpad(frame) {
            // The first error says more: it is about the frame as it came.
            Some(cut) => Self::read(cut).map_err(|_| error),
            None => Err(error),
        })
    }

    /// The bytes without padding.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.travelling().len() + 160);
        self.write(&mut bytes, self.hops_left, self.solicited, self.signature.as_ref());
        bytes
    }

    /// The bytes as the apps put them on the wire: Noise packets padded, others not.
    pub fn encode_for_wire(&self) -> Vec<u8> {
        let mut bytes = self.encode();
        if self.kind.is_padded() {
            pad(&mut bytes);
        }
        bytes
    }

    /// The name under which gossip sync knows it (section 8.2).
    pub fn id(&self) -> [u8; 16] {
        let digest = Sha256::new()
            .chain_update([self.kind.0])
            .chain_update(self.sender.0)
            .chain_update(self.timestamp_ms.to_be_bytes())
            .chain_update(&self.payload)
            .finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        id
    }

    /// The text by which iOS tells duplicates, and chooses links for a packet (section 7.3).
    pub fn apple_key(&self) -> String {
        let digest = Sha256::digest(&self.payload);
        let hash = data_encoding::HEXLOWER.encode(&digest[..4]);
        format!("{}-{}-{}-{hash}", self.sender, self.timestamp_ms, self.kind.0)
    }

    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() < MIN_LEN {
            return Err(DecodeError::Truncated { missing: MIN_LEN - bytes.len() });
        }
        let mut reader = Reader::new(bytes);
        let version = match reader.u8()? {
            1 => Version::V1,
            2 if bytes.len() < MIN_LEN_V2 => {
                return Err(DecodeError::Truncated { missing: MIN_LEN_V2 - bytes.len() });
            }
            2 => Version::V2,
            other => return Err(DecodeError::UnsupportedVersion(other)),
        };
        let kind = PacketType(reader.u8()?);
        let hops_left = reader.u8()?;
        let timestamp_ms = reader.u64()?;
        let flags = reader.u8()?;
        let length = match version {
            Version::V1 => usize::from(reader.u16()?),
            Version::V2 => reader.u32()? as usize,
        };
        if length > MAX_PAYLOAD {
            return Err(DecodeError::TooLarge { size: length });
        }
        let sender = MeshId(reader.array()?);
        let recipient =
            if flags & HAS_RECIPIENT == 0 { None } else { Some(MeshId(reader.array()?)) };
        let mut route = Vec::new();
        if flags & HAS_ROUTE != 0 && version == Version::V2 {
            let count = reader.u8()?;
            let hops = reader.take(usize::from(count) * 8)?;
            route = hops.as_chunks().0.iter().map(|hop| MeshId(*hop)).collect();
        }
        let carried = reader.take(length)?;
        // Before anything is inflated: a packet cut short costs nothing.
        let signature = if flags & HAS_SIGNATURE == 0 { None } else { Some(reader.array()?) };
        let (payload, compressed) = if flags & IS_COMPRESSED == 0 {
            (carried.to_vec(), None)
        } else {
            let (payload, data) = inflate(version, carried)?;
            (payload, Some(data.to_vec()))
        };
        let solicited = flags & IS_SOLICITED != 0;
        Ok(Self {
            version,
            kind,
            hops_left,
            timestamp_ms,
            sender,
            recipient,
            route,
            solicited,
            signature,
            payload,
            compressed,
        })
    }

    fn write(&self, out: &mut Vec<u8>, hops: u8, solicited: bool, signature: Option<&[u8; 64]>) {
        let routed = self.version == Version::V2 && !self.route.is_empty();
        let mut flags = 0;
        for (flag, set) in [
            (HAS_RECIPIENT, self.recipient.is_some()),
            (HAS_SIGNATURE, signature.is_some()),
            (IS_COMPRESSED, self.compressed.is_some()),
            (HAS_ROUTE, routed),
            (IS_SOLICITED, solicited),
        ] {
            flags |= if set { flag } else { 0 };
        }
        let carried = self.travelling();
        let size_field = match (&self.compressed, self.version) {
            (None, _) => 0,
            (Some(_), Version::V1) => 2,
            (Some(_), Version::V2) => 4,
        };
        let length = carried.len() + size_field;
        out.push(if self.version == Version::V1 { 1 } else { 2 });
        out.extend_from_slice(&[self.kind.0, hops]);
        out.extend_from_slice(&self.timestamp_ms.to_be_bytes());
        out.push(flags);
        match self.version {
            Version::V1 => out.extend_from_slice(&(length as u16).to_be_bytes()),
            Version::V2 => out.extend_from_slice(&(length as u32).to_be_bytes()),
        }
        out.extend_from_slice(&self.sender.0);
        if let Some(recipient) = self.recipient {
            out.extend_from_slice(&recipient.0);
        }
        if routed {
            out.push(self.route.len() as u8);
            self.route.iter().for_each(|hop| out.extend_from_slice(&hop.0));
        }
        match size_field {
            2 => out.extend_from_slice(&(self.payload.len() as u16).to_be_bytes()),
            4 => out.extend_from_slice(&(self.payload.len() as u32).to_be_bytes()),
            _ => {}
        }
        out.extend_from_slice(carried);
        if let Some(signature) = signature {
            out.extend_from_slice(signature);
        }
    }

    fn travelling(&self) -> &[u8] {
        self.compressed.as_deref().unwrap_or(&self.payload)
    }
}

fn inflate(version: Version, carried: &[u8]) -> Result<(Vec<u8>, &[u8]), DecodeError> {
    let mut reader = Reader::new(carried);
    let size = match version {
        Version::V1 => reader.u16().map(usize::from),
        Version::V2 => reader.u32().map(|size| size as usize),
    };
    let size = size.map_err(|_| DecodeError::Compression { length: 0, size: 0 })?;
    if size > MAX_PAYLOAD {
        return Err(DecodeError::TooLarge { size });
    }
    let data = reader.rest();
    let payload = compress::inflate(data, size)
        .ok_or(DecodeError::Compression { length: data.len(), size })?;
    Ok((payload, data))
}
