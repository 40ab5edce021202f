//! Between phones and the peers that speak through this node: names both ways, and what has to be
//! remembered of messages on their way to phones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fieldpost_bitchat::{
    Identity, MeshId, message,
    payload::{file::File, noise::MAX_TEXT},
};
use fieldpost_envelope::{Content, PeerId, ReceiptKind, Timestamp};
use uuid::Uuid;

/// A peer that speaks through the node.
#[derive(Clone, Debug)]
pub struct HostedPeer {
    /// Its name at the gateway.
    pub peer: PeerId,
    /// Its keys on the mesh.
    pub identity: Identity,
    /// What phones show.
    pub nickname: String,
}

/// A phone that is there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Phone {
    /// As it calls itself; anybody may call themselves anything.
    pub nickname: String,
    /// How many links its announces cross.
    pub hops: u8,
    /// When it was last heard.
    pub heard_at: Timestamp,
    /// Whether it has proven its keys inside a session.
    pub is_verified: bool,
    /// X25519.
    pub noise_key: [u8; 32],
    /// Ed25519.
    pub signing_key: [u8; 32],
}

/// What a phone has said. That it holds the name it says it under is proven; nothing else is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FromPhone {
    /// Text for a peer that speaks through this node. Whether it was taken is said by
    /// [`acknowledge`](crate::Transport::acknowledge) or
    /// [`forget`](crate::BleTransport::forget).
    Private {
        /// For whom.
        to: PeerId,
        /// Of which phone.
        from: PeerId,
        /// The phone's name for it, opaque.
        message_id: String,
        /// What it says.
        text: String,
    },
    /// Text for everybody.
    Public {
        /// Of which phone.
        from: PeerId,
        /// The same at every gateway that hears it.
        id: Uuid,
        /// When, by the phone's clock.
        sent_at: Timestamp,
        /// What it says.
        text: String,
    },
    /// A file.
    File {
        /// For whom, or for everybody.
        to: Option<PeerId>,
        /// Of which phone.
        from: PeerId,
        /// What was sent.
        file: PhoneFile,
    },
    /// A phone has a message of ours, has read it, or was handed what it does not acknowledge
    /// (`Stored`).
    Receipt {
        /// Which phone.
        phone: PeerId,
        /// The envelope in which the message left.
        envelope: [u8; 32],
        /// What it says of it.
        kind: ReceiptKind,
    },
}

/// A file that a phone has sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PhoneFile {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its media type, if the phone says so.
    pub mime_type: Option<String>,
    /// At most 1 MiB.
    pub content: Vec<u8>,
}

/// Sender, phone and message.
pub(super) type Sent = (MeshId, MeshId, Uuid);

/// Who speaks through the node, and what is on its way to phones.
#[derive(Default)]
pub(super) struct Hosted {
    peers: BTreeMap<PeerId, (MeshId, String)>,
    by_mesh: BTreeMap<MeshId, PeerId>,
    under_way: BTreeSet<Sent>,
    envelopes: BTreeMap<Sent, [u8; 32]>,
    /// The oldest first.
    order: VecDeque<Sent>,
}

/// What has to be done so that only some peers are hosted.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) host: Vec<HostedPeer>,
    pub(super) unhost: Vec<MeshId>,
    pub(super) rename: Vec<(MeshId, String)>,
}

impl Hosted {
    pub(super) fn mesh_id(&self, peer: &PeerId) -> Option<MeshId> {
        self.peers.get(peer).map(|(id, _)| *id)
    }

    pub(super) fn peer(&self, id: MeshId) -> Option<&PeerId> {
        self.by_mesh.get(&id)
    }

    /// Takes the whole list of those who are hosted from now on.
    pub(super) fn set(&mut self, wanted: Vec<HostedPeer>) -> Changes {
        let mut changes = Changes::default();
        let ids: BTreeMap<&PeerId, MeshId> =
            wanted.iter().map(|one| (&one.peer, one.identity.id())).collect();
        let gone: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(peer, (id, _))| ids.get(peer) != Some(id))
            .map(|(peer, _)| peer.clone())
            .collect();
        for peer in gone {
            if let Some((id, _)) = self.peers.remove(&peer) {
                self.by_mesh.remove(&id);
                self.under_way.retain(|(from, ..)| *from != id);
                changes.unhost.push(id);
            }
        }
        for one in wanted {
            let id = one.identity.id();
            match self.peers.get_mut(&one.peer) {
                Some((_, nickname)) if *nickname == one.nickname => {}
                Some((_, nickname)) => {
                    nickname.clone_from(&one.nickname);
                    changes.rename.push((id, one.nickname));
                }
                None => {
                    self.peers.insert(one.peer.clone(), (id, one.nickname.clone()));
                    self.by_mesh.insert(id, one.peer.clone());
                    changes.host.push(one);
                }
            }
        }
        changes
    }

    /// A message leaves in an envelope of this digest. False if it is on its way already.
    pub(super) fn leaves(&mut self, sent: Sent, envelope: [u8; 32]) -> bool {
        if self.envelopes.insert(sent, envelope).is_none() {
            self.order.push_back(sent);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.envelopes.remove(&oldest);
                self.under_way.remove(&oldest);
            }
        }
        self.under_way.insert(sent)
    }

    /// Nothing more is done for it until it is sent again.
    pub(super) fn ended(&mut self, id: Uuid, phone: MeshId) {
        self.under_way.retain(|(_, to, message)| (*to, *message) != (phone, id));
    }

    /// The envelope that a receipt is for.
    pub(super) fn envelope(&self, sent: &Sent) -> Option<[u8; 32]> {
        self.envelopes.get(sent).copied()
    }

    /// The phones to which a message is on its way.
    pub(super) fn recipients(&self, id: Uuid) -> impl Iterator<Item = MeshId> {
        self.under_way.iter().filter(move |(.., message)| *message == id).map(|(_, to, _)| *to)
    }

    /// The envelope of a message that only one of ours can have sent to this phone.
    pub(super) fn envelope_to(&self, id: Uuid, phone: MeshId) -> Option<[u8; 32]> {
        let under_way = self.under_way.iter();
        let sent = under_way.copied().find(|(_, to, message)| (*to, *message) == (phone, id))?;
        self.envelope(&sent)
    }
}

/// How content travels to a phone.
pub(super) enum ForPhone {
    /// As text, in one message or several.
    Text(String),
    /// As a file: it is no text, or too long.
    File(File),
}

impl ForPhone {
    pub(super) fn of(id: Uuid, content: &Content) -> Self {
        if let Some(text) = text_of(content)
            && message::split(&text, MAX_TEXT).len() <= MAX_PARTS
        {
            return Self::Text(text);
        }
        let plain = || if content.is_text { "text/plain" } else { "application/octet-stream" };
        let extension = if content.is_text { "txt" } else { "bin" };
        let mime_type = content.content_type.clone().unwrap_or_else(|| plain().to_owned());
        Self::File(File {
            name: Some(format!("{id}.{extension}")),
            stated_size: None,
            mime_type: Some(mime_type),
            content: content.bytes.clone(),
        })
    }
}

/// Content as text, if it is text.
pub(super) fn text_of(content: &Content) -> Option<String> {
    content.is_text.then(|| String::from_utf8(content.bytes.clone()).ok()).flatten()
}

/// The core sends no more parts of one text.
const MAX_PARTS: usize = 64;
/// Messages to phones whose envelopes are remembered for late receipts.
const REMEMBERED: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_hosted_follows_the_list() {
        let mut hosted = Hosted::default();
        let changes = hosted.set(vec![one("alice", 1, "Alice"), one("bob", 2, "Bob")]);
        assert_eq!((changes.host.len(), changes.unhost.len(), changes.rename.len()), (2, 0, 0));
        let changes = hosted.set(vec![one("alice", 1, "Alicia"), one("bob", 3, "Bob")]);
        let bob = one("bob", 2, "").identity.id();
        assert_eq!(changes.unhost, [bob]);
        assert_eq!(changes.host.len(), 1, "with other keys it is another peer to phones");
        assert_eq!(changes.rename.len(), 1);
        assert_eq!(hosted.peer(bob), None);
    }

    #[test]
    fn a_message_on_its_way_is_not_begun_again() {
        let mut hosted = Hosted::default();
        let sent = (MeshId([1; 8]), MeshId([2; 8]), Uuid::from_u128(3));
        assert!(hosted.leaves(sent, [4; 32]));
        assert!(!hosted.leaves(sent, [5; 32]));
        assert_eq!(hosted.envelope(&sent), Some([5; 32]), "the latest envelope is the one named");
        hosted.ended(sent.2, sent.1);
        assert!(hosted.leaves(sent, [5; 32]));
    }

    #[test]
    fn long_and_binary_content_goes_as_a_file() {
        let content = |bytes: &[u8], is_text| Content {
            bytes: bytes.to_vec(),
            is_text,
            ..Content::default()
        };
        let of = |content: &Content| ForPhone::of(Uuid::nil(), content);
        assert!(matches!(of(&content(b"hi", true)), ForPhone::Text(_)));
        assert!(matches!(of(&content(&[b'a'; 255 * 64], true)), ForPhone::Text(_)));
        assert!(matches!(of(&content(&[b'a'; 255 * 64 + 1], true)), ForPhone::File(_)));
        assert!(matches!(of(&content(b"hi", false)), ForPhone::File(_)));
    }

    fn one(peer: &str, seed: u8, nickname: &str) -> HostedPeer {
        HostedPeer {
            peer: peer.parse().unwrap(),
            identity: Identity::from_keys(&[seed; 32], &[seed; 32]),
            nickname: nickname.to_owned(),
        }
    }
}
