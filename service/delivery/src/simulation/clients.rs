//! Who writes, reads, confirms and withdraws.

use std::time::Duration;

use fieldpost_envelope::{AnonymityLevel, MessageId, PeerAddress, PeerId, Priority, Recipient};
use rand::{RngExt, rngs::StdRng};
use uuid::Uuid;

use super::{
    Fault, Happening, Shape, World,
    gateway::{Node, rules},
    judge::{End, Sent},
    network::TRANSPORTS,
};
use crate::{
    Accepted, AcceptedBatch, AtOnce, Cancelled, Confirm, Content, Message, Store, Submission,
    Target, Wishes, later, suite::ready,
};

/// Somebody who writes to somebody, both by gateway and name.
#[derive(Clone, Debug)]
pub(super) struct Talk {
    pub(super) from: End,
    pub(super) to: End,
}

/// Who writes to whom; some to peers of the same gateway.
pub(super) fn talks(shape: Shape, rng: &mut StdRng) -> Vec<Talk> {
    let mut end = || -> End {
        let name = ["alice", "bob"][rng.random_range(0..2)];
        (rng.random_range(0..shape.gateways), name.parse().expect("a peer id"))
    };
    let mut talks = Vec::new();
    while talks.len() < shape.talks {
        let (from, to) = (end(), end());
        if from != to && (from.0 != to.0 || talks.len() % 8 == 0) {
            talks.push(Talk { from, to });
        }
    }
    talks
}

impl World {
    /// One to four messages of one talk, at one moment.
    pub(super) fn write(&mut self) {
        let talk = self.talks[self.rng.random_range(0..self.talks.len())].clone();
        if !self.nodes[talk.from.0].is_up {
            return;
        }
        for _ in 0..self.rng.random_range(1..=2) {
            self.write_one(&talk);
        }
    }

    fn write_one(&mut self, talk: &Talk) {
        let (node, sender) = talk.from.clone();
        let level = match self.rng.random_range(0..10) {
            0..2 => AnonymityLevel::HIGHEST,
            2..4 => AnonymityLevel::LOW,
            _ => AnonymityLevel::NONE,
        };
        let is_critical = self.rng.random_range(0..12) == 0;
        let is_brief = self.rng.random_range(0..8) == 0;
        // To somebody else as well, now and then, as a group's home does.
        let mut recipients = vec![talk.to.clone()];
        let other = self.talks[self.rng.random_range(0..self.talks.len())].to.clone();
        let is_group = self.rng.random_range(0..12) == 0 && other != talk.to && other != talk.from;
        if is_group {
            recipients.push(other);
        }
        // Names are the senders' own, so two may choose the same.
        let known = self.log.sent.len();
        let twin = (self.rng.random_range(0..20) == 0 && known > 0)
            .then(|| &self.log.sent[self.rng.random_range(0..known)])
            .filter(|twin| twin.from != talk.from);
        let fresh = MessageId(Uuid::from_u128(known as u128 + 1));
        let id = match twin {
            Some(twin) if self.log.index(&talk.from, twin.id).is_none() => twin.id,
            _ => fresh,
        };
        let ttl = if is_brief { self.rng.random_range(20..400) } else { 24 * 3600 };
        let local = self.nodes[node].local(self.now);
        let to = match is_group {
            true => "group:club".parse().expect("a group"),
            false => Recipient::Peer(self.address(node, &talk.to)),
        };
        let message = Message {
            id,
            sender: sender.clone().into(),
            to,
            content: Content::default(),
            expires_at: later(local, Duration::from_secs(ttl)),
            priority: if is_critical { Priority::Critical } else { Priority::Normal },
            min_anonymity: level,
            wishes: self.any_wishes(level),
        };
        let deliveries = recipients.iter().map(|end| self.target(node, end)).collect();
        let sent = Sent {
            from: talk.from.clone(),
            recipients: recipients.clone(),
            id,
            level,
            is_critical,
            is_brief,
            expires_at: message.expires_at,
        };
        let submission =
            Submission { message, fingerprint: [1; 32], deliveries, failures: Vec::new() };
        let forgets = self.fault == Fault::ForgetsWhatItAccepted && self.is_unlucky(5);
        let mut claimed = Vec::new();
        if !forgets {
            let Node { store, reachable, .. } = &self.nodes[node];
            // Every other one waits for the next look, as where more is due.
            let reachable =
                if self.tally.accepted.is_multiple_of(2) { &reachable[..] } else { &[] };
            let at_once = AtOnce { present: &[], reachable, lease: rules().lease() };
            let batch = std::slice::from_ref(&submission);
            let Ok(accepted) = ready(store.accept_and_begin(local, batch, at_once));
            let AcceptedBatch { answers, claimed: begun, .. } = accepted;
            assert!(matches!(answers[..], [Accepted::New { .. }]), "{answers:?}");
            claimed = begun;
        }
        self.log.sent(sent);
        self.tally.accepted += 1;
        self.look_soon(node);
        for (reader, peer) in recipients {
            if reader == node {
                self.read_soon(node, peer);
            }
        }
        for claim in claimed {
            if !self.step(node) {
                return;
            }
            self.set_out(node, claim);
        }
        if !self.step(node) {
            return;
        }
        // A client that missed the answer sends again.
        if !forgets && self.rng.random_range(0..10) == 0 {
            let store = &self.nodes[node].store;
            let Ok(again) = ready(store.accept(local, &[submission]));
            assert!(matches!(again[..], [Accepted::Same { .. }]), "{again:?}");
        }
        if self.rng.random_range(0..15) == 0 {
            self.cancel(&talk.from, id);
        }
    }

    fn cancel(&mut self, from: &End, id: MessageId) {
        let (node, sender) = from;
        let local = self.nodes[*node].local(self.now);
        let Ok(cancelled) = ready(self.nodes[*node].store.cancel(local, sender, id));
        if cancelled == Cancelled::Done
            && let Some(index) = self.log.index(from, id)
        {
            for recipient in self.log.sent[index].recipients.clone() {
                self.log.ended(index, &recipient, self.now);
                self.tally.ended_otherwise += 1;
            }
        }
    }

    /// A client looks into its inbox, and confirms or not.
    pub(super) fn read(&mut self, node: usize, peer: PeerId) {
        self.nodes[node].reads_soon.remove(&peer);
        if !self.nodes[node].is_up {
            // It comes again when the gateway does.
            return;
        }
        let local = self.nodes[node].local(self.now);
        let Ok(entries) = ready(self.nodes[node].store.show(local, &peer, 0, 1000));
        let Some(last) = entries.last().map(|entry| entry.seq) else { return };
        let mut names = Vec::new();
        for entry in &entries {
            let sender = &entry.message.sender;
            let home = sender.gateway.map_or(Some(node), |home| self.node_of(home));
            let from = (home.unwrap_or(usize::MAX), sender.peer.clone());
            let is_new = self.log.shown(&from, entry, &(node, peer.clone()), self.now, local);
            self.tally.shown += usize::from(is_new);
            self.tally.marked += usize::from(is_new && (entry.gap || entry.late));
            names.push((entry.message.id, Some(sender.clone())));
        }
        let confirms = self.rng.random_range(0..10) < 8;
        if !confirms || !self.step(node) {
            return self.read_again(node, peer);
        }
        let is_read = self.rng.random_range(0..4) == 0;
        let what = match self.rng.random_range(0..3) {
            0 => Confirm::Messages(names),
            _ => Confirm::all_up_to(last),
        };
        let to = (node, peer.clone());
        match &what {
            Confirm::Messages(_) => self.log.confirmed(&to, &entries),
            Confirm::UpTo { seq, .. } => self.log.confirmed_up_to(&to, *seq),
        }
        let forgets = self.fault == Fault::ForgetsConfirmations && self.is_unlucky(5);
        if !forgets {
            let store = &self.nodes[node].store;
            let Ok(settled) = ready(store.confirm(local, &peer, &what, is_read));
            self.note_settled(node, &settled);
        }
        self.look_soon(node);
        if forgets {
            self.read_again(node, peer);
        }
    }

    pub(super) fn read_soon(&mut self, node: usize, peer: PeerId) {
        let millis = self.rng.random_range(1..3_000);
        self.read_in(node, peer, millis);
    }

    fn read_again(&mut self, node: usize, peer: PeerId) {
        self.read_in(node, peer, 3_000);
    }

    fn read_in(&mut self, node: usize, peer: PeerId, millis: i64) {
        if self.nodes[node].reads_soon.insert(peer.clone()) {
            self.after(millis, Happening::Read(node, peer));
        }
    }

    fn any_wishes(&mut self, level: AnonymityLevel) -> Wishes {
        let any = TRANSPORTS[self.rng.random_range(0..TRANSPORTS.len())].to_owned();
        match self.rng.random_range(0..20) {
            0 | 1 => Wishes { preference: Some(any), ..Wishes::default() },
            2 => Wishes { parallel: true, ..Wishes::default() },
            // The only one that carries all levels; what cannot ever go is not accepted.
            3 => Wishes { required: Some("htx".into()), ..Wishes::default() },
            4 if level == AnonymityLevel::NONE => {
                Wishes { required: Some(any), ..Wishes::default() }
            }
            _ => Wishes::default(),
        }
    }

    fn target(&self, node: usize, end: &End) -> Target {
        match end.0 == node {
            true => Target::Local(end.1.clone()),
            false => Target::Remote(self.address(node, end)),
        }
    }

    fn address(&self, node: usize, end: &End) -> PeerAddress {
        match end.0 == node {
            true => end.1.clone().into(),
            false => PeerAddress::remote(end.1.clone(), self.nodes[end.0].id),
        }
    }
}
