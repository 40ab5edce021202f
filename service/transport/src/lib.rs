//! The transport trait and its adapters: ways of carrying signed envelopes to other gateways.
//!
//! Only this crate knows protocols. The gateway sees a name, what the transport can do, what it
//! reaches, and two ends to put envelopes in and take them out.

mod air;
mod ble;
mod bluetooth;
mod files;
pub mod htx;
mod memory;
mod mesh;
mod radio;
mod streams;

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use fieldpost_envelope::{GatewayId, PeerId, ReceiptKind, SignedEnvelope, SignedRoster};
use serde::Serialize;
use thiserror::Error;
use tokio::sync::watch;

pub use air::{
    AirCounters, AirRadio, AirServer, JoinError, Position, Scenario, ScenarioError, Station,
};
pub use ble::{
    BLE_EVIDENCE, BleCounters, BleError, BleIdentity, BleOptions, BleTransport, FromPhone,
    HostedPeer, OpenAir, OpenRadio, OpenStreams, Phone, PhoneFile, PhonePin,
};
pub use bluetooth::{
    BluetoothAdapter, BluetoothRadio, BluetoothStatus, OpenBluetooth, bluetooth_adapters,
};
pub use files::{FileError, FileFetch, FileInfo, FileSource};
pub use htx::{HtxError, HtxFigures, HtxOptions, HtxTransport};
pub use memory::{Faults, MemoryNetwork, MemoryOptions, MemoryTransport};
pub use mesh::{MeshCounters, MeshError, MeshOptions, MeshRefusal, MeshTransport};
pub use radio::{LinkIds, Radio, RadioEvent, TransmitError};
pub use streams::{ParseAddressError, StreamAddress, StreamRadio};

/// One way of carrying envelopes to other gateways and to phones.
///
/// `Ok` from [`send`](Self::send) means that the transport has taken charge of the envelope, never
/// that the recipient has it. The outbox keeps the delivery until a receipt comes back.
#[async_trait]
pub trait Transport: Send + Sync {
    /// A short stable name, for routing rules, metrics and spans.
    fn name(&self) -> &'static str;

    /// What it can do, whatever its state.
    fn capabilities(&self) -> Capabilities;

    /// What can be reached now, from local knowledge alone, and a way to wait for changes: gateway
    /// ids, phones, and `transport:<name>` where a broadcast would be heard.
    fn reachable(&self) -> watch::Receiver<Arc<BTreeSet<String>>>;

    /// Targets in reach that have started anew since the last call, though nobody had missed them:
    /// what was under way to them may be lost, and what waits for them should leave. Whoever waits for
    /// changes of [`reachable`](Self::reachable) is woken.
    fn take_returned(&self) -> BTreeSet<String> {
        BTreeSet::new()
    }

    /// Takes charge of one envelope to `target`, or says why not.
    ///
    /// If the future is dropped, the envelope may or may not leave. Sending it again is safe:
    /// recipients discard a message they already hold.
    async fn send(&self, target: &str, envelope: SignedEnvelope) -> Result<(), SendError>;

    /// Waits for the next envelope addressed to this gateway, as it came; `None` once the
    /// transport has shut. Nothing in it has been verified. If the future is dropped, nothing is lost.
    async fn receive(&self) -> Option<Vec<u8>>;

    /// What [`receive`](Self::receive) gave is dealt with: stored, or not wanted now or later. Not
    /// called for what should come again. A transport that acknowledges end to end does so now;
    /// others ignore this.
    fn taken(&self, envelope: &[u8]) {
        let _ = envelope;
    }

    /// Takes this gateway's newest roster, to be told to all gateways in reach and those to come.
    ///
    /// `delta` leads to it from the one published before; a gateway that has that one is told the
    /// delta alone. A transport that tells no rosters ignores this.
    fn publish(&self, roster: &SignedRoster, delta: Option<&SignedRoster>) {
        let _ = (roster, delta);
    }

    /// Waits for the next roster of another gateway, as it came; nothing in it has been verified.
    /// `None` once the transport has shut.
    async fn receive_roster(&self) -> Option<HeardRoster> {
        std::future::pending().await
    }

    /// A roster of `gateway` that came could not be taken: it is to be told whole, as if nothing of it
    /// had come. May be ignored where it is told whole anyway, now and then.
    fn roster_missed(&self, gateway: GatewayId) {
        let _ = gateway;
    }

    /// Serves files to gateways that ask, from now on.
    fn serve_files(&self, source: Arc<dyn FileSource>) {
        let _ = source;
    }

    /// Fetches a file that `gateway` keeps, from byte `from` on.
    ///
    /// # Errors
    ///
    /// The gateway is out of reach, or will not give it.
    async fn fetch_file(
        &self,
        gateway: GatewayId,
        file: &str,
        from: u64,
    ) -> Result<FileFetch, FileError> {
        let _ = (gateway, file, from);
        Err(FileError::Unsupported)
    }

    /// Keeps links to these gateways warm, and to those named before no longer; may be ignored.
    fn keep_warm(&self, gateways: &BTreeSet<GatewayId>) {
        let _ = gateways;
    }

    /// Tells `phone` that `peer` has, or has read, a message that the phone calls `message_id`.
    ///
    /// # Errors
    ///
    /// The phone is out of reach, or the transport reaches none.
    async fn acknowledge(
        &self,
        phone: &str,
        peer: &PeerId,
        message_id: &str,
        kind: ReceiptKind,
    ) -> Result<(), SendError> {
        let _ = (peer, message_id, kind);
        Err(SendError::Unreachable { target: phone.to_owned() })
    }

    /// Over how many links `target` is reached now, where that is known.
    fn hops(&self, target: &str) -> Option<u8> {
        let _ = target;
        None
    }

    /// What its claims have been held against and what was not tried, in words; `None` where the
    /// project's own tests run all of it.
    fn evidence(&self) -> Option<&'static str> {
        None
    }

    /// What is in the way of it, in words for an operator; `None` when nothing is.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Its state in figures.
    fn status(&self) -> Status;

    /// Stops taking envelopes, lets those under way finish, and ends its tasks.
    async fn shutdown(&self);
}

/// A roster as it came from another gateway.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HeardRoster {
    /// A signed roster, whole or a delta.
    pub bytes: Vec<u8>,
    /// Whether the gateway that told it was found on the local network.
    pub is_nearby: bool,
}

/// What a transport can do (design, section 7; names of the mirrored API's capabilities).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Capabilities {
    /// To one recipient.
    pub supports_unicast: bool,
    /// To everybody in reach.
    pub supports_broadcast: bool,
    /// To a group.
    pub supports_multicast: bool,
    /// The largest content, in bytes.
    pub max_message_size: usize,
    /// How long a message usually takes, in milliseconds.
    pub typical_latency_ms: u32,
    /// How much it usually carries, in Mbit/s.
    pub bandwidth_mbps: f64,
    /// Whether it works without any network.
    pub is_offline_capable: bool,
    /// Whether it needs the internet.
    pub requires_internet: bool,
    /// Whether third parties cannot read what it carries.
    pub provides_encryption: bool,
    /// Whether a key stolen later opens nothing sent before.
    pub supports_forward_secrecy: bool,
    /// The anonymity level as it stands, 0 to 3.
    pub anonymity_level: u8,
    /// The best level that it can ever declare, so that a message may wait for it.
    pub best_anonymity_level: u8,
    /// Whether it reaches phones that are no gateways.
    pub reaches_phones: bool,
    /// `low`, `medium` or `high`.
    pub battery_impact: &'static str,
    /// `low`, `medium` or `high`.
    pub data_cost_impact: &'static str,
    /// Whether it keeps envelopes for recipients that are away.
    pub supports_store_and_forward: bool,
    /// Whether others pass envelopes on.
    pub supports_multi_hop: bool,
    /// Over how many links at most.
    pub max_hops: u8,
}

/// A transport's state in figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// Whether it runs.
    pub is_available: bool,
    /// Whether it reaches anybody.
    pub is_connected: bool,
    /// From 0 to 1.
    pub connection_quality: f64,
    /// Envelopes it took charge of.
    pub envelopes_sent: u64,
    /// Envelopes that came.
    pub envelopes_received: u64,
}

/// Why a transport did not take charge.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum SendError {
    /// Nothing leads there now.
    #[error("{target} is out of reach")]
    Unreachable {
        /// What was to be reached.
        target: String,
    },
    /// The envelope is larger than the transport carries.
    #[error("{size} bytes are too much for this transport: at most {limit}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The most that would do.
        limit: usize,
    },
    /// Too much is under way already.
    #[error("the transport is busy: {limit} envelopes wait already")]
    Busy {
        /// How many may wait.
        limit: usize,
    },
    /// It broke.
    #[error("the transport failed: {0}")]
    Failed(String),
    /// It has been shut down.
    #[error("the transport is shut")]
    Shut,
}
