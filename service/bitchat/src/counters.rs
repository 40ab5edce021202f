//! What a node counts.

/// Figures since the node began. None of them resets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Frames that came.
    pub frames_received: u64,
    /// Frames handed to links.
    pub frames_sent: u64,
    /// Bytes in them.
    pub bytes_sent: u64,
    /// Frames dropped because their link sent more than its share.
    pub over_rate: u64,
    /// Frames that are not packets.
    pub undecodable: u64,
    /// Packets whose time is more than two minutes off, unsolicited.
    pub stale: u64,
    /// Packets under a name of ours that we did not send.
    pub echoes: u64,
    /// Packets that had been seen.
    pub duplicates: u64,
    /// Packets whose signature is missing or wrong.
    pub unsigned: u64,
    /// Packets that need the sender's announce, which has not come.
    pub unknown_sender: u64,
    /// Announces whose keys contradict each other, or those pinned before.
    pub spoofed: u64,
    /// Payloads that are not what their type says.
    pub malformed: u64,
    /// New peers not learnt because their link brought too many, or there is no room.
    pub peers_refused: u64,
    /// Packets relayed.
    pub relayed: u64,
    /// Packets not relayed because their link had used up its share, or too many were held.
    pub relay_refused: u64,
    /// Relays called off because a neighbour was faster.
    pub relay_cancelled: u64,
    /// Frames dropped because their link's queue was full.
    pub queue_full: u64,
    /// Relayed packets too large for a link.
    pub unfit: u64,
    /// Fragments refused.
    pub fragments_refused: u64,
    /// Sets of fragments given up.
    pub sets_given_up: u64,
    /// Sets that were whole and yet no packet.
    pub sets_broken: u64,
    /// Packets that had lost a byte to Android's fragmenter and got it back.
    pub sets_repaired: u64,
    /// Handshake messages and frames that did not open.
    pub noise_refused: u64,
    /// Frames that came a second time.
    pub noise_replayed: u64,
    /// Handshakes and plaintexts turned away for want of room or over their rate.
    pub noise_limited: u64,
    /// Sessions that have stood.
    pub sessions: u64,
    /// Private messages that came again and were acknowledged again.
    pub messages_repeated: u64,
    /// Pings not answered because their link sent too many.
    pub pings_refused: u64,
    /// Transfers from gateways turned away.
    pub transfers_refused: u64,
    /// Links turned away.
    pub links_refused: u64,
}

impl Counters {
    /// What was turned away, with a word for the reason. What had merely been seen is not among it.
    pub fn refused(&self) -> [(&'static str, u64); 19] {
        [
            ("over_rate", self.over_rate),
            ("undecodable", self.undecodable),
            ("stale", self.stale),
            ("echo", self.echoes),
            ("unsigned", self.unsigned),
            ("unknown_sender", self.unknown_sender),
            ("spoofed", self.spoofed),
            ("malformed", self.malformed),
            ("peer", self.peers_refused),
            ("relay", self.relay_refused),
            ("queue_full", self.queue_full),
            ("unfit", self.unfit),
            ("fragment", self.fragments_refused),
            ("noise", self.noise_refused),
            ("noise_replayed", self.noise_replayed),
            ("noise_limited", self.noise_limited),
            ("ping", self.pings_refused),
            ("transfer", self.transfers_refused),
            ("link", self.links_refused),
        ]
    }
}
