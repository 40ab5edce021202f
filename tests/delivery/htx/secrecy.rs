//! What a thief can do with traffic that was recorded: all that its relays and its receiver could, if the
//! keys of its epoch can be found anywhere.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    path::Path,
};

use fieldpost_envelope::OpeningKey;
use fieldpost_mixnet::{
    client::Finished,
    directory::{Document, Epoch, RelayId},
    receiver::{self, Receiver},
    sphinx::{Command, Group, Production, Suite, X25519, open},
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::time::Instant;

/// Packets of one epoch, as they came to the first relays of their routes.
pub(crate) struct Recording {
    pub(crate) epoch: Epoch,
    pub(crate) packets: Vec<Finished>,
}

/// Whose key it is, of which epoch, and what it opens.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Lock {
    pub(crate) epoch: Epoch,
    pub(crate) node: RelayId,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    /// Layers of packets.
    Sphinx,
    /// The content, at the end.
    Sealing,
}

/// Keys that were found, with what they open.
pub(crate) type Loot = BTreeMap<Lock, [u8; 32]>;

impl Recording {
    /// The message that the packets carried, to whoever has all keys for it: the thief does what the
    /// relays and the receiver did.
    pub(crate) fn open(&self, loot: &Loot) -> Option<Vec<u8>> {
        let mut receivers = BTreeMap::new();
        for finished in &self.packets {
            let (mut at, mut packet) = (finished.first, finished.packet.clone());
            while let Some(next) = self.peel(loot, at, packet.as_bytes_mut())? {
                at = next;
            }
            let sealing = *self.key(loot, at, Kind::Sealing)?;
            let receiver = receivers.entry(at).or_insert_with(|| {
                let rng = StdRng::seed_from_u64(1);
                let mut receiver = Receiver::new(at, receiver::Config::default(), rng);
                receiver.open_epoch(self.epoch, OpeningKey::from_bytes(sealing));
                receiver
            });
            let now = Instant::now().into_std();
            for action in receiver.handle(now, receiver::Event::Packet(packet)) {
                if let receiver::Action::Store { message, .. } = action {
                    return Some(message);
                }
            }
        }
        None
    }

    /// What the hops computed on their way: who finds one of these needs no key for that layer.
    pub(crate) fn traces(&self, loot: &Loot) -> Vec<(String, [u8; 32])> {
        let mut traces = Vec::new();
        for finished in &self.packets {
            let (mut at, mut packet) = (finished.first, finished.packet.clone());
            loop {
                let bytes = packet.as_bytes();
                let (prefix, rest) = bytes.split_at(Production::PREFIX);
                let element = rest.first_chunk().expect("a whole packet");
                let secret = self.key(loot, at, Kind::Sphinx).expect("all keys are there");
                let secret = X25519::secret(secret).expect("any bytes are a secret");
                let shared = X25519::multiply(&secret, element).expect("a good packet");
                let keys = Production::derive(&shared, prefix, element, &self.epoch);
                let payload = *keys.payload.0.first_chunk().expect("longer than a key");
                for (what, trace) in [
                    ("shared secret", shared),
                    ("MAC key", keys.mac),
                    ("header key", keys.header),
                    ("blinding", keys.blinding),
                    ("payload key", payload),
                ] {
                    traces.push((format!("{what} of a packet at {at}"), trace));
                }
                let next = self.peel(loot, at, packet.as_bytes_mut()).expect("a good packet");
                let Some(next) = next else { break };
                at = next;
            }
        }
        traces
    }

    /// Takes off one layer; who is next, or `Some(None)` at the end of the route.
    fn peel(&self, loot: &Loot, at: RelayId, packet: &mut [u8]) -> Option<Option<RelayId>> {
        let secret = X25519::secret(self.key(loot, at, Kind::Sphinx)?)?;
        let opened = open::<Production>(&secret, &self.epoch, packet).ok()?;
        match opened.process().ok()?.command {
            Command::Forward { next, .. } => Some(Some(next)),
            Command::Deliver => Some(None),
            Command::Reply { .. } => None,
        }
    }

    fn key<'l>(&self, loot: &'l Loot, node: RelayId, kind: Kind) -> Option<&'l [u8; 32]> {
        loot.get(&Lock { epoch: self.epoch, node, kind })
    }
}

/// A search for keys through all that a machine keeps.
///
/// Windows of 32 bytes are taken for secrets: the public half of each is compared with those that the
/// documents name. It is one multiplication for each, so windows that no random key looks like are left
/// out, and pages that were seen. Some bytes are looked for as they are, everywhere.
pub(crate) struct Hunt {
    locks: BTreeMap<[u8; 32], Lock>,
    /// What is looked for as it is, and what it is.
    exact: Vec<(String, [u8; 32])>,
    starts: [bool; 256],
    seen: HashSet<u64>,
    /// Windows that were tried as secrets.
    pub(crate) tried: u64,
    /// Bytes that were looked at.
    pub(crate) bytes: u64,
    pub(crate) loot: Loot,
    /// Where each key lay, the last time that it was found.
    pub(crate) places: BTreeMap<Lock, String>,
    /// Which of `exact` were found, and where.
    pub(crate) found: BTreeSet<(String, String)>,
}

/// Where windows begin that are taken for secrets: at each multiple of it, or nowhere.
pub(crate) type Step = Option<NonZeroUsize>;

impl Hunt {
    /// A search for the keys of all epochs that the documents have keys for.
    pub(crate) fn new<'d>(documents: impl IntoIterator<Item = &'d Document>) -> Self {
        let mut locks = BTreeMap::new();
        for relay in documents.into_iter().flat_map(Document::relays) {
            let node = relay.signed().id();
            for keys in &relay.descriptor().keys {
                for (kind, key) in [(Kind::Sphinx, keys.sphinx), (Kind::Sealing, keys.sealing)] {
                    locks.insert(key, Lock { epoch: keys.epoch, node, kind });
                }
            }
        }
        Self {
            locks,
            exact: Vec::new(),
            starts: [false; 256],
            seen: HashSet::new(),
            tried: 0,
            bytes: 0,
            loot: Loot::new(),
            places: BTreeMap::new(),
            found: BTreeSet::new(),
        }
    }

    /// The same, which looks for these bytes, too.
    pub(crate) fn for_bytes(mut self, exact: &[(String, [u8; 32])]) -> Self {
        self.exact.extend_from_slice(exact);
        exact.iter().for_each(|(_, key)| self.starts[usize::from(key[0])] = true);
        self
    }

    /// Searches the files below a folder.
    pub(crate) fn files(&mut self, folder: &Path, step: Step) {
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    Ok(kind) if kind.is_file() => {
                        // Files come and go; those that are gone hold nothing.
                        let bytes = fs::read(entry.path()).unwrap_or_default();
                        self.search(&bytes, step, &entry.path().display().to_string());
                    }
                    _ => {}
                }
            }
        }
    }

    /// Searches what a process may write to: its heap, its stacks, what it has mapped.
    pub(crate) fn memory(&mut self, pid: u32, step: Step) {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives");
        let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("it is ours to read");
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (range, rights) = (words.next().expect("a range"), words.next().expect("rights"));
            if !rights.starts_with("rw") {
                continue;
            }
            let (from, to) = range.split_once('-').expect("two ends");
            let [from, to] = [from, to].map(|end| u64::from_str_radix(end, 16).expect("hex"));
            let mut at = from;
            while at < to {
                let length = (to - at).min(PIECE);
                let mut bytes = vec![0; usize::try_from(length).expect("it fits")];
                if memory.read_exact_at(&mut bytes, at).is_ok() {
                    self.search(&bytes, step, &format!("memory of {pid} at {at:x}"));
                }
                // A key that lies across two pieces is in the next one whole.
                at += if at + length < to { length - PAGE as u64 } else { length };
            }
        }
    }

    fn search(&mut self, bytes: &[u8], step: Step, place: &str) {
        for (at, page) in bytes.chunks(PAGE).enumerate() {
            // Most of what is reserved was never used.
            if is_empty(page) {
                continue;
            }
            let from = at * PAGE;
            let window = &bytes[from..bytes.len().min(from + PAGE + KEY - 1)];
            self.bytes += page.len() as u64;
            if !self.exact.is_empty() {
                self.look_for_exact(window, place);
            }
            let Some(step) = step else { continue };
            let mut hasher = DefaultHasher::new();
            window.hash(&mut hasher);
            if self.seen.insert(hasher.finish()) {
                self.try_secrets(window, step.get(), place);
            }
        }
    }

    fn look_for_exact(&mut self, bytes: &[u8], place: &str) {
        for (at, byte) in bytes.iter().enumerate() {
            if self.starts[usize::from(*byte)] {
                let rest = &bytes[at..];
                for (what, key) in &self.exact {
                    if rest.starts_with(key) {
                        self.found.insert((what.clone(), format!("{place} + {at:x}")));
                    }
                }
            }
        }
    }

    fn try_secrets(&mut self, bytes: &[u8], step: usize, place: &str) {
        let mut at = 0;
        while let Some(window) = bytes.get(at..).and_then(<[u8]>::first_chunk::<KEY>) {
            if looks_random(window) {
                self.tried += 1;
                let public = X25519::secret(window).and_then(|secret| X25519::public(&secret));
                if let Some(lock) = public.and_then(|public| self.locks.get(&public)) {
                    self.loot.insert(*lock, *window);
                    self.places.insert(*lock, place.to_owned());
                }
            }
            at += step;
        }
    }
}

/// The two forms that a secret is kept in: as it was drawn, and clamped (RFC 7748, section 5).
pub(crate) fn forms(key: &[u8; 32]) -> [[u8; 32]; 2] {
    let mut clamped = *key;
    clamped[0] &= 0xf8;
    clamped[31] = clamped[31] & 0x7f | 0x40;
    [*key, clamped]
}

fn is_empty(page: &[u8]) -> bool {
    page.first() == Some(&0) && page[1..] == page[..page.len() - 1]
}

/// Whether a random key could look like this. It has not two of four words that begin with two zeros, as
/// addresses and counters do, nor fewer than 20 different bytes, as text does: one key in many millions
/// has.
fn looks_random(window: &[u8; KEY]) -> bool {
    let (words, _) = window.as_chunks::<8>();
    if words.iter().filter(|word| word[6] == 0 && word[7] == 0).count() >= 2 {
        return false;
    }
    let mut present = [0_u64; 4];
    for byte in window {
        present[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }
    present.iter().map(|bits| bits.count_ones()).sum::<u32>() >= 20
}

const KEY: usize = 32;
const PAGE: usize = 4 << 10;
const PIECE: u64 = 4 << 20;
