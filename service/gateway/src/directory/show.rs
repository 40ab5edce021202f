//! A document of the directory, for people and for programs.

use std::fmt::{self, Display, Formatter};

use chrono::{DateTime, SecondsFormat, Utc};
use data_encoding::HEXLOWER;
use fieldpost_envelope::Timestamp;
use fieldpost_transport::htx::directory::{Authority, Descriptor, RelayId, SignedDocument};
use serde::Serialize;

/// What `fieldpost directory show` prints.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    authority: ShownAuthority,
    document: Option<ShownDocument>,
}

impl Shown {
    pub(super) fn new(
        authority: &Authority,
        document: Option<&SignedDocument>,
        now: Timestamp,
    ) -> Self {
        Self {
            authority: ShownAuthority {
                network: HEXLOWER.encode(&authority.id()),
                threshold: authority.threshold(),
                signers: authority
                    .signers()
                    .iter()
                    .map(|key| HEXLOWER.encode(key.as_bytes()))
                    .collect(),
                epoch_seconds: authority.clock().length().as_secs(),
                current_epoch: authority.clock().epoch_at(now),
            },
            document: document.map(|document| ShownDocument::new(authority, document, now)),
        }
    }
}

#[derive(Debug, Serialize)]
struct ShownAuthority {
    network: String,
    threshold: usize,
    signers: Vec<String>,
    epoch_seconds: u64,
    current_epoch: u64,
}

#[derive(Debug, Serialize)]
struct ShownDocument {
    number: u64,
    epoch: u64,
    begins_at: String,
    ends_at: String,
    /// `active`, `to come` or `over`.
    state: &'static str,
    digest: String,
    predecessor: Option<String>,
    frozen_at: String,
    beacon: String,
    beacon_sources: Vec<String>,
    has_weak_beacon: bool,
    signatures: Vec<ShownSignature>,
    /// Whether nodes of the network believe it.
    is_believed: bool,
    /// Why not.
    reason: Option<String>,
    hides_senders: bool,
    relays: Vec<ShownRelay>,
}

#[derive(Debug, Serialize)]
struct ShownSignature {
    signer: String,
    verifies: bool,
}

#[derive(Debug, Serialize)]
struct ShownRelay {
    id: String,
    relays: bool,
    operator: String,
    addresses: Vec<String>,
    server_name: String,
    through: Vec<String>,
    autonomous_system: Option<u32>,
    country: Option<String>,
    weight: u32,
    capacity: u32,
    gateway: Option<String>,
    noise_key: String,
    ticket_key: String,
    keys: Vec<ShownKeys>,
    /// Whether the node and the gateway that certifies it signed this.
    verifies: bool,
}

#[derive(Debug, Serialize)]
struct ShownKeys {
    epoch: u64,
    sphinx: String,
    sealing: String,
}

impl ShownDocument {
    fn new(authority: &Authority, signed: &SignedDocument, now: Timestamp) -> Self {
        let document = signed.document();
        let (clock, epoch) = (authority.clock(), document.epoch);
        let believed = signed.verify(authority);
        Self {
            number: document.number,
            epoch,
            begins_at: time(clock.start(epoch)),
            ends_at: time(clock.start(epoch + 1)),
            state: match clock.epoch_at(now) {
                current if current < epoch => "to come",
                current if current == epoch => "active",
                _ => "over",
            },
            digest: HEXLOWER.encode(&signed.digest()),
            predecessor: document.predecessor.map(|digest| HEXLOWER.encode(&digest)),
            frozen_at: time(document.frozen_at),
            beacon: HEXLOWER.encode(&document.beacon),
            beacon_sources: document.beacon_sources.iter().map(|it| it.name.clone()).collect(),
            has_weak_beacon: document.has_weak_beacon(),
            signatures: signed
                .signatures(authority)
                .into_iter()
                .map(|(signer, verifies)| ShownSignature {
                    signer: HEXLOWER.encode(signer.as_bytes()),
                    verifies,
                })
                .collect(),
            is_believed: believed.is_ok(),
            reason: believed.err().map(|error| error.to_string()),
            hides_senders: document.hides_senders(),
            relays: document
                .relays()
                .iter()
                .map(|relay| {
                    let verifies = relay.signed().verify().is_ok();
                    ShownRelay::new(relay.descriptor(), relay.weight(), verifies)
                })
                .collect(),
        }
    }
}

impl ShownRelay {
    fn new(descriptor: &Descriptor, weight: u32, verifies: bool) -> Self {
        Self {
            id: descriptor.id().to_string(),
            relays: descriptor.relays,
            operator: descriptor.operator.clone(),
            addresses: descriptor.addresses.iter().map(ToString::to_string).collect(),
            server_name: descriptor.server_name.clone(),
            through: descriptor.through.iter().map(RelayId::to_string).collect(),
            autonomous_system: descriptor.autonomous_system,
            country: descriptor
                .country
                .map(|letters| String::from_utf8_lossy(&letters).into_owned()),
            weight,
            capacity: descriptor.capacity,
            gateway: descriptor.certificate.map(|certificate| certificate.gateway.to_string()),
            noise_key: HEXLOWER.encode(&descriptor.noise),
            ticket_key: HEXLOWER.encode(&descriptor.ticket.public),
            keys: descriptor
                .keys
                .iter()
                .map(|keys| ShownKeys {
                    epoch: keys.epoch,
                    sphinx: HEXLOWER.encode(&keys.sphinx),
                    sealing: HEXLOWER.encode(&keys.sealing),
                })
                .collect(),
            verifies,
        }
    }
}

impl Display for Shown {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let authority = &self.authority;
        writeln!(f, "network     {}", authority.network)?;
        writeln!(
            f,
            "authority   {} of {} signers, epochs of {} s, now {}",
            authority.threshold,
            authority.signers.len(),
            authority.epoch_seconds,
            authority.current_epoch,
        )?;
        match &self.document {
            Some(document) => document.fmt(f),
            None => write!(
                f,
                "document    none yet: start relays with --directory, then sign the first one by \
                 `fieldpost directory sign`"
            ),
        }
    }
}

impl Display for ShownDocument {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "document    {} for epoch {}, {}", self.number, self.epoch, self.state)?;
        writeln!(f, "holds       {} to {}", self.begins_at, self.ends_at)?;
        writeln!(f, "digest      {}", self.digest)?;
        writeln!(
            f,
            "follows     {}",
            self.predecessor.as_deref().unwrap_or("none, it is the first")
        )?;
        writeln!(f, "frozen      {}", self.frozen_at)?;
        let rests_on = match self.has_weak_beacon {
            true => "weak: the document before it".to_owned(),
            false => self.beacon_sources.join(", "),
        };
        writeln!(f, "beacon      {} ({rests_on})", self.beacon)?;
        for signature in &self.signatures {
            let verdict = if signature.verifies { "verifies" } else { "does not verify" };
            writeln!(f, "signature   {} {verdict}", signature.signer)?;
        }
        match &self.reason {
            None => writeln!(f, "believed    yes")?,
            Some(reason) => writeln!(f, "believed    no: {reason}")?,
        }
        let hides =
            if self.hides_senders { "yes" } else { "no, that needs 3 relays of 2 operators" };
        writeln!(f, "hides       {hides}")?;
        let relaying = self.relays.iter().filter(|relay| relay.relays).count();
        write!(f, "nodes       {}, of which {relaying} relay", self.relays.len())?;
        for relay in &self.relays {
            write!(f, "\n\n{relay}")?;
        }
        Ok(())
    }
}

impl Display for ShownRelay {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let role = if self.relays { "relay" } else { "gateway" };
        writeln!(f, "{role:11} {}", self.id)?;
        let verdict = if self.verifies { "verifies" } else { "does not verify" };
        writeln!(f, "  signature {verdict}")?;
        writeln!(f, "  operator  {}", self.operator)?;
        if self.addresses.is_empty() {
            writeln!(f, "  through   {}", self.through.join(", "))?;
        } else {
            writeln!(f, "  at        {} as {}", self.addresses.join(", "), self.server_name)?;
        }
        if let Some(gateway) = &self.gateway {
            writeln!(f, "  of        {gateway}")?;
        }
        writeln!(f, "  weight    {} millionths, up to {} packets/s", self.weight, self.capacity)?;
        write!(f, "  keys for ")?;
        for keys in &self.keys {
            write!(f, " {} ({}…)", keys.epoch, &keys.sphinx[..16])?;
        }
        Ok(())
    }
}

/// A time as people and programs read it, in UTC to the second.
pub(super) fn time(time: Timestamp) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)
}
