//! How much of everything there may be.

use std::time::Duration;

/// The limits of a node. At each, the behaviour is stated; what is turned away is counted in
/// [`Counters`](crate::Counters).
#[derive(Clone, Debug)]
pub struct Limits {
    /// Links at once; further ones are disconnected.
    pub links: usize,
    /// Links that what is said here may cross, from 1 to 7; one less for what hosted peers say.
    /// Announces always say 7 and 6, since links are bound by that.
    pub hops: u8,
    /// Peers that speak through this node, itself included; hosting more is refused.
    pub hosted: usize,
    /// Peers remembered, present or only pinned. A new stranger takes the place of the stranger
    /// that was heard least recently; whoever has a session or a link, or was verified by a person,
    /// stays.
    pub peers: usize,
    /// New peers learnt over one link in a minute; further announces over it wait for the next.
    pub new_peers_per_link_a_minute: u32,
    /// A peer is reported lost when it was not heard for so long. Its keys stay pinned.
    pub presence: Duration,
    /// Frames taken from one link in a second; further ones are dropped. Twice as many may come
    /// in a burst.
    pub frames_per_link_a_second: u32,
    /// Frames relayed for one link in a second, twice as many in a burst.
    pub relays_per_link_a_second: u32,
    /// Frames that wait for a link. Relayed packets are dropped at three quarters of it, our own
    /// at all of it.
    pub frames_per_link: usize,
    /// Packets that wait for their relay delay, in all; further ones are not relayed.
    pub held: usize,
    /// Packets remembered as seen, for five minutes; beyond it the oldest are forgotten.
    pub seen: usize,
    /// Sets of fragments being put together, in all; beyond it the oldest is given up.
    pub sets: usize,
    /// Sets of one sender; beyond it that sender's oldest is given up.
    pub sets_per_sender: usize,
    /// Bytes in all sets; beyond it the oldest is given up.
    pub set_bytes: usize,
    /// Fragments of one set that we send at most: Android takes no more.
    pub fragments_sent: u16,
    /// Fragments of one set that we take; sets that say more are refused. iOS sends a file of 1 MiB
    /// in some 2,300.
    pub fragments_received: u16,
    /// How long a set may take.
    pub set_life: Duration,
    /// Sessions and handshakes; beyond it the one idle longest gives way, but no session used in the
    /// last ten minutes.
    pub sessions: usize,
    /// Plaintexts that wait for one session.
    pub waiting_per_session: usize,
    /// Frames that came before their session stood, in all.
    pub early_frames: usize,
    /// Handshakes with one peer in a minute, begun by either side.
    pub handshakes_per_peer_a_minute: u32,
    /// Handshakes in all in a minute.
    pub handshakes_a_minute: u32,
    /// Handshakes that one link may begin in a minute.
    pub handshakes_per_link_a_minute: u32,
    /// Private messages that wait for a receipt; further ones are refused.
    pub unconfirmed: usize,
    /// How long a private message is tried.
    pub private_patience: Duration,
    /// Ids of private messages remembered, so that a second copy is not shown; beyond it the
    /// oldest are forgotten.
    pub received_ids: usize,
    /// Contents on their way to other gateways; further ones are refused.
    pub outgoing_transfers: usize,
    /// Contents on their way from other gateways; further ones are refused, and said so.
    pub incoming_transfers: usize,
    /// Contents from one gateway at once.
    pub incoming_transfers_per_peer: usize,
    /// How long one content is tried without progress.
    pub transfer_patience: Duration,
    /// Pings answered on one link in ten seconds.
    pub pings_per_link: u32,
    /// Pings of ours that wait for a pong.
    pub pings: usize,
    /// Parts of a long public text, each under 100 bytes; longer texts travel in one packet.
    pub public_parts: usize,
    /// Flows of Noise frames that are kept in order on their last hop.
    pub flows: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            links: 32,
            hops: 7,
            hosted: 64,
            peers: 2048,
            new_peers_per_link_a_minute: 120,
            presence: Duration::from_secs(180),
            frames_per_link_a_second: 300,
            relays_per_link_a_second: 100,
            frames_per_link: 1024,
            held: 1024,
            seen: 10_000,
            sets: 128,
            sets_per_sender: 16,
            set_bytes: 8 * 1024 * 1024,
            fragments_sent: 256,
            fragments_received: 4096,
            set_life: Duration::from_secs(30),
            sessions: 1024,
            waiting_per_session: 64,
            early_frames: 32,
            handshakes_per_peer_a_minute: 10,
            handshakes_a_minute: 300,
            handshakes_per_link_a_minute: 60,
            unconfirmed: 1024,
            private_patience: Duration::from_secs(60),
            received_ids: 10_000,
            outgoing_transfers: 64,
            incoming_transfers: 64,
            incoming_transfers_per_peer: 8,
            transfer_patience: Duration::from_secs(60),
            pings_per_link: 5,
            pings: 64,
            public_parts: 8,
            flows: 256,
        }
    }
}
