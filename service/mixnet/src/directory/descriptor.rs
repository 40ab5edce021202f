//! What a relay says of itself (HTX reference, section 5).
//!
//! ```text
//! signed descriptor = payload || signature (64 bytes)
//! signature         = Ed25519(identity, "fieldpost-htx-descriptor-v1" || payload)
//! relay id          = SHA-256(identity)
//! ```
//!
//! The payload is a map in the deterministic CBOR of RFC 8949, section 4.2.1:
//!
//! | Key | Holds |
//! |---|---|
//! | 0 | version, 1 |
//! | 1 | identity, an Ed25519 key, 32 bytes |
//! | 2 | epoch in which it was made |
//! | 3 | label of the operator, text |
//! | 4 | autonomous system, if known |
//! | 5 | country, two capital letters, if known |
//! | 6 | addresses, array of `[4 or 16 bytes, port]`, unless empty |
//! | 7 | name that its TLS certificate is for, text; there if there are addresses |
//! | 8 | relays that it keeps links to, array of relay ids, unless empty |
//! | 9 | keys of each epoch, array of `[epoch, Sphinx key, sealing key]`, from key 2 on |
//! | 10 | Noise key |
//! | 11 | ticket key, `[id of 8 bytes, key]` |
//! | 12 | carriers of tickets, `[cookie, query, field, weight, weight, weight, least, most]` |
//! | 13 | VRF key |
//! | 14 | capacity, packets a second |
//! | 15 | 1 if it relays for others, else 0 |
//! | 16 | capabilities on links, array, unless empty |
//! | 17 | certificate of its gateway, `[gateway id, not after, signature]`, if it is one |
//!
//! A gateway that relays for nobody has a descriptor, too: it is the last hop of the routes to it.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use fieldpost_envelope::{GatewayId, Timestamp};
use thiserror::Error;

use super::{
    cbor::{DecodeError, Reader, Writer},
    epoch::Epoch,
};
pub use crate::sphinx::RelayId;

use crate::htx::{Capabilities, Capability, CarrierPolicy, PublicKey, TicketKey};

/// What a descriptor may hold at most.
pub mod limits {
    /// A signed descriptor, in bytes.
    pub const SIGNED: usize = 4_096;
    /// The operator's label, in bytes.
    pub const OPERATOR: usize = 64;
    /// Addresses.
    pub const ADDRESSES: usize = 8;
    /// The name in the TLS certificate, in bytes.
    pub const SERVER_NAME: usize = 253;
    /// Relays that it keeps links to.
    pub const THROUGH: usize = 4;
    /// Epochs with keys.
    pub const EPOCHS: usize = 3;
    /// How long a gateway's certificate is good, in milliseconds: 24 h.
    pub const CERTIFICATE_MS: u64 = 24 * 60 * 60 * 1_000;
}

/// The public halves of a relay's secrets for one epoch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EpochKeys {
    /// The epoch.
    pub epoch: Epoch,
    /// What Sphinx packets are made for.
    pub sphinx: PublicKey,
    /// What content for this gateway is sealed to.
    pub sealing: PublicKey,
}

/// A gateway's word that this node is one of its replicas.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Certificate {
    /// The gateway.
    pub gateway: GatewayId,
    /// When the word ceases to be good.
    pub not_after: Timestamp,
    signature: [u8; 64],
}

impl Certificate {
    /// Certifies a node as the gateway whose key this is.
    pub fn issue(gateway: &SigningKey, node: &VerifyingKey, not_after: Timestamp) -> Self {
        let id = GatewayId::from(gateway.verifying_key());
        let text = Self::text(id, node, not_after);
        Self { gateway: id, not_after, signature: gateway.sign(&text).to_bytes() }
    }

    /// Whether the gateway said so of this node.
    fn is_of(&self, node: &VerifyingKey) -> bool {
        let text = Self::text(self.gateway, node, self.not_after);
        let signature = Signature::from_bytes(&self.signature);
        self.gateway.verifying_key().is_ok_and(|key| key.verify_strict(&text, &signature).is_ok())
    }

    fn text(gateway: GatewayId, node: &VerifyingKey, not_after: Timestamp) -> Vec<u8> {
        let not_after = not_after.as_millis().to_be_bytes();
        [CERTIFICATE_CONTEXT, gateway.as_bytes(), node.as_bytes(), &not_after].concat()
    }
}

/// What a relay says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Descriptor {
    /// The key that signs it, and that its id comes from.
    pub identity: VerifyingKey,
    /// The epoch in which it was made.
    pub epoch: Epoch,
    /// Whose it is: relays with one label are one operator's.
    pub operator: String,
    /// The autonomous system that it is in, as its operator says.
    pub autonomous_system: Option<u32>,
    /// The country that it is in, two capital letters, as its operator says.
    pub country: Option<[u8; 2]>,
    /// Where it listens. A gateway behind NAT has none.
    pub addresses: Vec<SocketAddr>,
    /// The name that its TLS certificate is for. Empty if it has no addresses.
    pub server_name: String,
    /// Relays that it keeps links to: the last hop before it, if it has no addresses.
    pub through: Vec<RelayId>,
    /// Its keys for each epoch, from [`epoch`](Self::epoch) on without a gap.
    pub keys: Vec<EpochKeys>,
    /// The static key of links to it.
    pub noise: PublicKey,
    /// What tickets for it are made for.
    pub ticket: TicketKey,
    /// How it wants to be shown tickets.
    pub carriers: CarrierPolicy,
    /// The key of its draws in the relay lottery.
    pub vrf: [u8; 32],
    /// How many packets a second it wants to relay.
    pub capacity: u32,
    /// Whether it relays for others.
    pub relays: bool,
    /// What it can do on links beyond the first version.
    pub capabilities: Capabilities,
    /// The gateway that it is a replica of.
    pub certificate: Option<Certificate>,
}

impl Descriptor {
    /// The relay that this is of.
    pub fn id(&self) -> RelayId {
        RelayId::of(&self.identity)
    }

    /// Its keys for an epoch.
    pub fn keys_of(&self, epoch: Epoch) -> Option<&EpochKeys> {
        self.keys.iter().find(|keys| keys.epoch == epoch)
    }

    /// The gateway that it is a replica of at this time, if its word is still good.
    pub fn gateway(&self, now: Timestamp) -> Option<GatewayId> {
        let certificate = self.certificate?;
        let left = certificate.not_after.as_millis().checked_sub(now.as_millis())?;
        (left <= limits::CERTIFICATE_MS).then_some(certificate.gateway)
    }

    /// Encodes and signs the descriptor.
    ///
    /// The same descriptor and key always give the same bytes.
    ///
    /// # Errors
    ///
    /// It breaks a rule, or the key is another relay's.
    pub fn sign(&self, key: &SigningKey) -> Result<SignedDescriptor, DescriptorError> {
        if key.verifying_key() != self.identity {
            return Err(DescriptorError::KeyOfAnother);
        }
        self.check()?;
        let mut bytes = self.encode();
        let signature = key.sign(&signed_text(&bytes));
        bytes.extend_from_slice(&signature.to_bytes());
        if bytes.len() > limits::SIGNED {
            let (length, most) = (bytes.len(), limits::SIGNED);
            return Err(DecodeError::Oversize { length, most }.into());
        }
        Ok(SignedDescriptor { id: self.id(), bytes, descriptor: self.clone() })
    }

    fn check(&self) -> Result<(), DescriptorError> {
        let plain = |text: &str, most: usize| {
            (1..=most).contains(&text.len()) && !text.contains(char::is_control)
        };
        if !plain(&self.operator, limits::OPERATOR) {
            return Err(DescriptorError::Operator { length: self.operator.len() });
        }
        if self.country.is_some_and(|country| !country.iter().all(u8::is_ascii_uppercase)) {
            return Err(DescriptorError::Country);
        }
        self.check_addresses()?;
        let distinct: BTreeSet<_> = self.through.iter().collect();
        if self.through.len() > limits::THROUGH || distinct.len() < self.through.len() {
            return Err(DescriptorError::Through { count: self.through.len() });
        }
        if self.addresses.is_empty() && (self.relays || self.through.is_empty()) {
            return Err(DescriptorError::Unreachable);
        }
        let follow = (self.epoch..).zip(&self.keys).all(|(epoch, keys)| keys.epoch == epoch);
        if !(1..=limits::EPOCHS).contains(&self.keys.len()) || !follow {
            return Err(DescriptorError::Epochs { count: self.keys.len() });
        }
        if self.capacity == 0 && self.relays {
            return Err(DescriptorError::Capacity);
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), DescriptorError> {
        if self.addresses.len() > limits::ADDRESSES {
            return Err(DescriptorError::Addresses { count: self.addresses.len() });
        }
        let mut seen = BTreeSet::new();
        for address in &self.addresses {
            let (ip, port) = (address.ip(), address.port());
            // One address has one encoding.
            let canonical = ip.to_canonical() == ip && *address == SocketAddr::new(ip, port);
            if !canonical || ip.is_unspecified() || ip.is_multicast() || port == 0 {
                return Err(DescriptorError::Address(*address));
            }
            if !seen.insert(*address) {
                return Err(DescriptorError::Address(*address));
            }
        }
        let name = &self.server_name;
        let is_name = !name.is_empty()
            && name.len() <= limits::SERVER_NAME
            && name.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte)
            });
        if is_name == self.addresses.is_empty() {
            return Err(DescriptorError::ServerName { length: name.len() });
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let optional = [
            self.autonomous_system.is_some(),
            self.country.is_some(),
            !self.addresses.is_empty(),
            !self.server_name.is_empty(),
            !self.through.is_empty(),
            self.capabilities.iter().len() > 0,
            self.certificate.is_some(),
        ];
        let mut writer = Writer::new();
        writer.map(11 + optional.iter().filter(|there| **there).count());
        writer.key(0).uint(VERSION);
        writer.key(1).bytes(self.identity.as_bytes());
        writer.key(2).uint(self.epoch);
        writer.key(3).text(&self.operator);
        if let Some(number) = self.autonomous_system {
            writer.key(4).uint(number.into());
        }
        if let Some(country) = &self.country {
            writer.key(5).text(str::from_utf8(country).unwrap_or_default());
        }
        self.encode_reach(&mut writer);
        writer.key(9).list(self.keys.len());
        for keys in &self.keys {
            writer.list(3);
            writer.uint(keys.epoch);
            writer.bytes(&keys.sphinx);
            writer.bytes(&keys.sealing);
        }
        writer.key(10).bytes(&self.noise);
        writer.key(11).list(2);
        writer.bytes(&self.ticket.id);
        writer.bytes(&self.ticket.public);
        writer.key(12).list(8);
        self.carriers.names().iter().for_each(|name| writer.text(name));
        let (least, most) = self.carriers.padding();
        let numbers = self.carriers.weights().into_iter().chain([least, most]);
        numbers.for_each(|number| writer.uint(number.into()));
        writer.key(13).bytes(&self.vrf);
        writer.key(14).uint(self.capacity.into());
        writer.key(15).uint(self.relays.into());
        if self.capabilities.iter().len() > 0 {
            writer.key(16).list(self.capabilities.iter().len());
            self.capabilities.iter().for_each(|capability| writer.uint(capability.0.into()));
        }
        if let Some(certificate) = &self.certificate {
            writer.key(17).list(3);
            writer.bytes(certificate.gateway.as_bytes());
            writer.uint(certificate.not_after.as_millis());
            writer.bytes(&certificate.signature);
        }
        writer.finish()
    }

    fn encode_reach(&self, writer: &mut Writer) {
        if !self.addresses.is_empty() {
            writer.key(6).list(self.addresses.len());
            for address in &self.addresses {
                writer.list(2);
                match address.ip() {
                    IpAddr::V4(ip) => writer.bytes(&ip.octets()),
                    IpAddr::V6(ip) => writer.bytes(&ip.octets()),
                }
                writer.uint(address.port().into());
            }
        }
        if !self.server_name.is_empty() {
            writer.key(7).text(&self.server_name);
        }
        if !self.through.is_empty() {
            writer.key(8).list(self.through.len());
            self.through.iter().for_each(|relay| writer.bytes(relay.as_bytes()));
        }
    }

    fn decode(payload: &[u8]) -> Result<Self, DescriptorError> {
        let reader = &mut Reader::new(payload);
        let mut map = reader.map("descriptor")?;
        match map.required(reader, 0, "version")?.uint("version", u64::MAX)? {
            VERSION => {}
            version => return Err(DecodeError::Version(version).into()),
        }
        let identity = map.required(reader, 1, "identity")?.array("identity")?;
        let identity =
            VerifyingKey::from_bytes(&identity).map_err(|_| DescriptorError::Identity)?;
        let epoch = map.required(reader, 2, "epoch")?.uint("epoch", MAX_EPOCH)?;
        let operator =
            map.required(reader, 3, "operator")?.text("operator", limits::OPERATOR)?.to_owned();
        let autonomous_system = if map.optional(reader, 4)? {
            Some(reader.uint("autonomous system", u32::MAX.into())? as u32)
        } else {
            None
        };
        let country = if map.optional(reader, 5)? {
            let country = reader.text("country", 2)?.as_bytes();
            Some(country.try_into().map_err(|_| DescriptorError::Country)?)
        } else {
            None
        };
        let addresses =
            if map.optional(reader, 6)? { decode_addresses(reader)? } else { Vec::new() };
        let server_name = if map.optional(reader, 7)? {
            non_empty("server name", reader.text("server name", limits::SERVER_NAME)?)?.to_owned()
        } else {
            String::new()
        };
        let mut through = Vec::new();
        if map.optional(reader, 8)? {
            for _ in 0..filled("relays", reader.list("relays", limits::THROUGH)?)? {
                through.push(RelayId(reader.array("relay")?));
            }
        }
        let mut keys = Vec::new();
        let count = map.required(reader, 9, "keys")?.list("keys", limits::EPOCHS)?;
        for _ in 0..count {
            reader.tuple("keys", 3)?;
            keys.push(EpochKeys {
                epoch: reader.uint("epoch", MAX_EPOCH)?,
                sphinx: reader.array("sphinx key")?,
                sealing: reader.array("sealing key")?,
            });
        }
        let noise = map.required(reader, 10, "noise key")?.array("noise key")?;
        map.required(reader, 11, "ticket key")?.tuple("ticket key", 2)?;
        let ticket = TicketKey { id: reader.array("ticket id")?, public: reader.array("ticket")? };
        let carriers = decode_carriers(map.required(reader, 12, "carriers")?)?;
        let vrf = map.required(reader, 13, "vrf key")?.array("vrf key")?;
        let capacity =
            map.required(reader, 14, "capacity")?.uint("capacity", u32::MAX.into())? as u32;
        let relays = map.required(reader, 15, "relays")?.uint("relays", 1)? == 1;
        let capabilities = if map.optional(reader, 16)? {
            decode_capabilities(reader)?
        } else {
            Capabilities::default()
        };
        let certificate =
            if map.optional(reader, 17)? { Some(decode_certificate(reader)?) } else { None };
        map.finish(reader)?;
        let (position, length) = (reader.position(), payload.len());
        if position < length {
            return Err(DecodeError::Trailing { extra: length - position }.into());
        }
        let descriptor = Self {
            identity,
            epoch,
            operator,
            autonomous_system,
            country,
            addresses,
            server_name,
            through,
            keys,
            noise,
            ticket,
            carriers,
            vrf,
            capacity,
            relays,
            capabilities,
            certificate,
        };
        descriptor.check()?;
        Ok(descriptor)
    }
}

/// A descriptor with its signature, ready to travel or just arrived.
///
/// What it says comes out of [`verify`](Self::verify) alone.
#[derive(Clone, Eq, PartialEq)]
pub struct SignedDescriptor {
    /// Worked out once: documents are searched and sorted by it.
    id: RelayId,
    bytes: Vec<u8>,
    descriptor: Descriptor,
}

impl SignedDescriptor {
    /// Reads bytes that came from somebody. The signature is not looked at yet.
    ///
    /// What decodes encodes to the same bytes again.
    ///
    /// # Errors
    ///
    /// Says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, DescriptorError> {
        if bytes.len() > limits::SIGNED {
            let (length, most) = (bytes.len(), limits::SIGNED);
            return Err(DecodeError::Oversize { length, most }.into());
        }
        let (payload, _) =
            bytes.split_last_chunk::<SIGNATURE_LEN>().ok_or(DecodeError::Truncated)?;
        let descriptor = Descriptor::decode(payload)?;
        debug_assert_eq!(descriptor.encode(), payload, "a descriptor has one encoding");
        Ok(Self { id: descriptor.id(), bytes: bytes.to_vec(), descriptor })
    }

    /// The bytes to send.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Who claims to have signed this; true once [`verify`](Self::verify) succeeded.
    pub fn id(&self) -> RelayId {
        self.id
    }

    /// Verifies the signature, and the certificate if there is one, and gives out what was said.
    ///
    /// # Errors
    ///
    /// The relay did not sign this, or the gateway did not certify it.
    pub fn verify(&self) -> Result<&Descriptor, DescriptorError> {
        let (payload, signature) =
            self.bytes.split_last_chunk::<SIGNATURE_LEN>().ok_or(DecodeError::Truncated)?;
        let Descriptor { identity, certificate, .. } = &self.descriptor;
        identity
            .verify_strict(&signed_text(payload), &Signature::from_bytes(signature))
            .map_err(|_| DescriptorError::Signature)?;
        if certificate.is_some_and(|certificate| !certificate.is_of(identity)) {
            return Err(DescriptorError::Certificate);
        }
        Ok(&self.descriptor)
    }

    /// What it says, for those who have verified it.
    pub(super) fn verified(&self) -> &Descriptor {
        &self.descriptor
    }
}

impl fmt::Debug for SignedDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedDescriptor")
            .field("id", &self.id())
            .field("size_bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// Why something is not a descriptor, or not believed.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum DescriptorError {
    /// The bytes are not what they should be.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The identity is no Ed25519 key.
    #[error("the identity is not an Ed25519 key")]
    Identity,
    /// A relay signs its own descriptor.
    #[error("the key is another relay's")]
    KeyOfAnother,
    /// The operator's label.
    #[error("an operator's label of {length} bytes: expected 1 to {most}, none of them control characters", most = limits::OPERATOR)]
    Operator {
        /// How long it is.
        length: usize,
    },
    /// The country.
    #[error("the country is not two capital letters")]
    Country,
    /// Too many addresses.
    #[error("{count} addresses: expected at most {most}", most = limits::ADDRESSES)]
    Addresses {
        /// How many there are.
        count: usize,
    },
    /// An address that nobody can connect to, or that was there before, or in another form.
    #[error("{0} is no address to connect to, or comes twice")]
    Address(SocketAddr),
    /// The name in the TLS certificate.
    #[error("a server name of {length} bytes: expected 1 to {most} of a-z 0-9 . - with addresses, none without", most = limits::SERVER_NAME)]
    ServerName {
        /// How long it is.
        length: usize,
    },
    /// The relays that it keeps links to.
    #[error("{count} relays to be reached through: expected at most {most}, each once", most = limits::THROUGH)]
    Through {
        /// How many there are.
        count: usize,
    },
    /// It has neither addresses nor relays that it keeps links to, or it relays without addresses.
    #[error("there is no way to reach it")]
    Unreachable,
    /// The epochs of its keys.
    #[error("keys of {count} epochs: expected 1 to {most} from its own on, without a gap", most = limits::EPOCHS)]
    Epochs {
        /// How many there are.
        count: usize,
    },
    /// A relay that relays nothing.
    #[error("a relay without capacity")]
    Capacity,
    /// The carriers of tickets.
    #[error("the carriers of tickets are none")]
    Carriers(#[from] crate::htx::PolicyError),
    /// The signature.
    #[error("the signature is not one of the relay for these bytes")]
    Signature,
    /// The certificate.
    #[error("the certificate is not one of the gateway for this relay")]
    Certificate,
}

fn decode_addresses(reader: &mut Reader<'_>) -> Result<Vec<SocketAddr>, DecodeError> {
    let count = filled("addresses", reader.list("addresses", limits::ADDRESSES)?)?;
    let mut addresses = Vec::with_capacity(count);
    for _ in 0..count {
        reader.tuple("address", 2)?;
        let ip = reader.bytes("address", 16)?;
        let ip = match (<[u8; 4]>::try_from(ip), <[u8; 16]>::try_from(ip)) {
            (Ok(v4), _) => IpAddr::from(v4),
            (_, Ok(v6)) => IpAddr::from(v6),
            _ => {
                let (field, length) = ("address", ip.len());
                return Err(DecodeError::Length { field, length, expected: 16 });
            }
        };
        let port = reader.uint("port", u16::MAX.into())? as u16;
        addresses.push(SocketAddr::new(ip, port));
    }
    Ok(addresses)
}

fn decode_carriers(reader: &mut Reader<'_>) -> Result<CarrierPolicy, DescriptorError> {
    reader.tuple("carriers", 8)?;
    let mut names = [""; 3];
    for name in &mut names {
        *name = reader.text("carrier", CarrierPolicy::MAX_NAME)?;
    }
    let mut numbers = [0; 5];
    for number in &mut numbers {
        *number = reader.uint("carrier", u8::MAX.into())? as u8;
    }
    let [cookie, query, field, least, most] = numbers;
    Ok(CarrierPolicy::new(names, [cookie, query, field], (least, most))?)
}

fn decode_capabilities(reader: &mut Reader<'_>) -> Result<Capabilities, DecodeError> {
    let field = "capabilities";
    let mut list = Vec::new();
    for _ in 0..filled(field, reader.list(field, Capabilities::MOST)?)? {
        list.push(Capability(reader.uint(field, u16::MAX.into())? as u16));
    }
    if !list.is_sorted_by(|one, next| one < next) {
        return Err(DecodeError::Order { field });
    }
    Capabilities::new(list).map_err(|_| DecodeError::Invalid { field })
}

fn decode_certificate(reader: &mut Reader<'_>) -> Result<Certificate, DecodeError> {
    reader.tuple("certificate", 3)?;
    let gateway = GatewayId::from_bytes(reader.array("gateway")?);
    let not_after = decode_time(reader, "not after")?;
    Ok(Certificate { gateway, not_after, signature: reader.array("signature")? })
}

pub(super) fn decode_time(
    reader: &mut Reader<'_>,
    field: &'static str,
) -> Result<Timestamp, DecodeError> {
    let value = reader.uint(field, u64::MAX)?;
    Timestamp::try_from(value).map_err(|_| DecodeError::OutOfRange { field, value })
}

/// An optional list that is there holds something: else the same could be written in two ways.
pub(super) fn filled(field: &'static str, length: usize) -> Result<usize, DecodeError> {
    if length == 0 { Err(DecodeError::Invalid { field }) } else { Ok(length) }
}

fn non_empty<'a>(field: &'static str, text: &'a str) -> Result<&'a str, DecodeError> {
    filled(field, text.len()).map(|_| text)
}

fn signed_text(payload: &[u8]) -> Vec<u8> {
    [DESCRIPTOR_CONTEXT, payload].concat()
}

/// Far enough for epochs of a second, and no sum of a few overflows.
pub(super) const MAX_EPOCH: Epoch = 1 << 48;

const SIGNATURE_LEN: usize = 64;
const VERSION: u64 = 1;
const DESCRIPTOR_CONTEXT: &[u8] = b"fieldpost-htx-descriptor-v1";
const CERTIFICATE_CONTEXT: &[u8] = b"fieldpost-htx-node-v1";
