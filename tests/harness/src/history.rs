//! The history checker: judges the five promises by what clients sent, saw and were told (design,
//! section 1). It knows nothing of the gateway.
//!
//! Clients write down when each call began and ended and what came of it. A call without an answer
//! may or may not have had its effect, and so may one that was answered with a server error; the
//! checker flags only what no such reading explains. So every violation it reports is one, and
//! what it cannot see, it does not judge:
//!
//! * Two sends of one lane are ordered only if one was answered before the other began.
//! * A confirmation counts once it was answered, or once the sender was told of it.
//! * What is shown on a connection that was open before a confirmation may have been under way.
//! * Loss is judged in a history that is [`settled`](History::settled): everything that waits was
//!   asked for, and the last word of the gateway on each message was recorded.

mod check;
mod recorder;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, fs, io, path::Path};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::{check::check, recorder::Recorder};

/// Microseconds since the history began, on one clock for all clients.
pub type Time = u64;

/// What clients did and saw, in no particular order.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct History {
    /// All of it.
    pub events: Vec<Event>,
    /// Whether every inbox was emptied at the end and every message asked after.
    pub settled: bool,
    /// The anonymity level of each transport; one that is not listed has level 0. `local` crosses
    /// no link, so no level applies to it.
    pub levels: BTreeMap<String, u8>,
}

/// One thing that a client did or saw.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Event {
    /// A message was handed in. A repetition under the same id is an event of its own.
    Send(Send),
    /// A message was shown to a recipient's client.
    Shown(Shown),
    /// A recipient's client confirmed messages.
    Confirm(Confirm),
    /// A sender asked how a message fares, or was told.
    Report(Report),
    /// A sender withdrew a message.
    Cancel(Cancel),
    /// A caller tried to act as another peer.
    Trespass(Trespass),
}

/// A message handed in.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Send {
    /// Who sent.
    pub sender: String,
    /// Under which id.
    pub message: Uuid,
    /// To whom, with groups resolved; empty if that cannot be known, as for a broadcast.
    pub recipients: Vec<String>,
    /// What.
    pub content: String,
    /// The level asked for.
    pub min_anonymity: u8,
    /// Whether it has a lane: not if it is critical or a broadcast.
    pub ordered: bool,
    /// Its time to live, in microseconds.
    pub ttl: Time,
    /// When the call began.
    pub invoked: Time,
    /// When it ended.
    pub completed: Time,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a call.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Outcome {
    /// It was answered with success.
    Done,
    /// It was refused: a client's error, nothing has happened.
    Refused,
    /// There was no answer, or a server's error: it may have happened.
    Unknown,
}

/// A message shown.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Shown {
    /// Whose inbox it was in.
    pub peer: String,
    /// Its place there.
    pub seq: u64,
    /// Its id.
    pub message: Uuid,
    /// Who sent it, as shown.
    pub sender: String,
    /// What, as shown.
    pub content: String,
    /// Whether it follows a gap.
    pub gap: bool,
    /// Whether it is late.
    pub late: bool,
    /// The connection or the poll that showed it.
    pub stream: u64,
    /// When that was begun.
    pub opened: Time,
    /// When the client had it.
    pub at: Time,
}

/// A confirmation.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Confirm {
    /// Whose inbox.
    pub peer: String,
    /// What was confirmed.
    pub what: Confirmed,
    /// When the call began.
    pub invoked: Time,
    /// When it ended.
    pub completed: Time,
    /// What came of it; over a socket nothing does, so it is unknown.
    pub outcome: Outcome,
}

/// What a confirmation covers.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Confirmed {
    /// All that had been shown, up to this place.
    UpTo(u64),
    /// Messages by id, whoever sent them.
    Messages(Vec<Uuid>),
}

/// The gateway's word on a message to its sender.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    /// Who was told.
    pub sender: String,
    /// About which message.
    pub message: Uuid,
    /// For each recipient, where its delivery stands.
    pub deliveries: Vec<DeliveryReport>,
    /// When the question was asked.
    pub invoked: Time,
    /// When it was answered.
    pub completed: Time,
    /// Whether the gateway knew no such message.
    pub unknown: bool,
}

/// Where one delivery stands.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct DeliveryReport {
    /// To whom.
    pub recipient: String,
    /// A word of design section 5.
    pub status: String,
    /// The transports it was given to.
    pub transports: Vec<String>,
}

/// A message withdrawn.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Cancel {
    /// By whom.
    pub sender: String,
    /// Which.
    pub message: Uuid,
    /// When the call began.
    pub invoked: Time,
    /// When it ended.
    pub completed: Time,
    /// What came of it.
    pub outcome: Outcome,
}

/// An attempt to act as another peer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Trespass {
    /// Whose token was used; empty for none.
    pub caller: String,
    /// As whom.
    pub claimed: String,
    /// What was tried.
    pub action: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// A promise broken.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Violation {
    /// In which way.
    pub kind: Kind,
    /// What was seen.
    pub story: String,
}

/// The ways of breaking a promise.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Promise 1: accepted, and neither shown nor reported by the end.
    Lost,
    /// Promise 1: reported as what it is not.
    Misreported,
    /// Promise 2: shown again after it was confirmed.
    Doubled,
    /// Promise 2: one place for two messages, or two places for one.
    Renumbered,
    /// Promise 3: given to a transport of a lower level.
    Downgraded,
    /// Promise 4: shown as from somebody who did not send it, or an act as another peer.
    Impersonated,
    /// Promise 4: shown to somebody whom it was not for.
    Misdelivered,
    /// Promise 4 and 1: shown with other content.
    Corrupted,
    /// Promise 5: shown before what was accepted earlier.
    Reordered,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.story)
    }
}

impl History {
    /// Writes the history to a file, so that a failure can be looked at.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_vec(self)?)
    }

    /// Reads a history that was saved.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or holds something else.
    pub fn load(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// Panics with all violations, if there are any, and says where the history was saved.
    pub fn assert_clean(&self, seed: u64) {
        let violations = check(self);
        if violations.is_empty() {
            return;
        }
        let path = std::env::temp_dir().join(format!("fieldpost-history-{seed}.json"));
        let saved = match self.save(&path) {
            Ok(()) => path.display().to_string(),
            Err(error) => format!("nowhere ({error})"),
        };
        let shown: Vec<String> = violations.iter().take(20).map(ToString::to_string).collect();
        panic!(
            "{} promises were broken (seed {seed}, history in {saved}):\n{}",
            violations.len(),
            shown.join("\n")
        );
    }
}
