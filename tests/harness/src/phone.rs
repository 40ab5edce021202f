//! A phone: a BitChat node of its own, a neighbour of a gateway over a stream.
//!
//! It is built on the same core as the gateway's node, without the marks by which Fieldpost nodes know
//! each other. That the core's bytes are those of the apps is what the vectors show.

use std::{path::PathBuf, time::Duration};

use fieldpost_bitchat::{
    Action, Command, Event, Identity, Limits, MeshId, Node, Now, ReceiptKind, Report,
};
use fieldpost_transport::{LinkIds, Radio, RadioEvent, StreamAddress, StreamRadio};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};
use uuid::Uuid;

use crate::client::PATIENCE;

/// Reports that wait for the test.
const REPORTS: usize = 4096;

/// A phone in range.
pub struct Phone {
    /// Its name on the mesh.
    pub id: MeshId,
    commands: mpsc::Sender<Command>,
    reports: mpsc::Receiver<Report>,
    /// What came while something else was waited for.
    missed: Vec<Report>,
    drive: JoinHandle<()>,
}

impl Phone {
    /// A phone that is a neighbour of whoever listens at `address`.
    ///
    /// # Panics
    ///
    /// If the radio cannot be opened.
    pub async fn start(seed: u64, nickname: &str, address: &StreamAddress) -> Self {
        let neighbours = [address.clone()];
        let radio = StreamRadio::open(&[], &neighbours, LinkIds::default(), seed).await;
        let mut rng = StdRng::seed_from_u64(seed);
        let identity = Identity::generate(&mut rng);
        let node = Node::new(rng, Limits::default(), identity, nickname.to_owned()).as_phone();
        let id = node.id();
        let (commands, asked) = mpsc::channel(16);
        let (told, reports) = mpsc::channel(REPORTS);
        let drive = tokio::spawn(drive(node, radio.expect("a radio"), asked, told));
        Self { id, commands, reports, missed: Vec::new(), drive }
    }

    /// Its name as gateways write it.
    pub fn name(&self) -> String {
        self.id.to_hex()
    }

    /// Waits for a report, which may have come before.
    ///
    /// # Panics
    ///
    /// If it does not come in time.
    pub async fn until(&mut self, is_it: impl Fn(&Report) -> bool) -> Report {
        if let Some(index) = self.missed.iter().position(&is_it) {
            return self.missed.remove(index);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = timeout_at(deadline, self.reports.recv()).await;
            let report = report.unwrap_or_else(|_| panic!("it never came; {:?}", self.missed));
            let report = report.expect("the phone runs");
            if is_it(&report) {
                return report;
            }
            self.missed.push(report);
        }
    }

    /// Waits until a peer of this nickname is there, and says under which name.
    ///
    /// # Panics
    ///
    /// As [`until`](Self::until).
    pub async fn meets(&mut self, nickname: &str) -> MeshId {
        let is_it =
            |report: &Report| matches!(report, Report::Peer(peer) if peer.nickname == nickname);
        let Report::Peer(peer) = self.until(is_it).await else { unreachable!("it is a peer") };
        peer.id
    }

    /// Waits for the next private message: from whom, its id and its text.
    ///
    /// # Panics
    ///
    /// As [`until`](Self::until).
    pub async fn private(&mut self) -> (MeshId, String, String) {
        let report = self.until(|report| matches!(report, Report::Private { .. })).await;
        let Report::Private { from, message_id, text, .. } = report else {
            unreachable!("it is a private message")
        };
        (from, message_id, text)
    }

    /// Whether a private message has come that nobody asked for yet.
    pub fn has_private(&mut self) -> bool {
        while let Ok(report) = self.reports.try_recv() {
            self.missed.push(report);
        }
        self.missed.iter().any(|report| matches!(report, Report::Private { .. }))
    }

    /// Says something to one peer.
    pub async fn says_to(&self, to: MeshId, message_id: Uuid, text: &str) {
        let text = text.to_owned();
        self.command(Command::SendPrivate { from: self.id, to, message_id, text }).await;
    }

    /// Says something to everybody.
    pub async fn says(&self, text: &str) {
        let (message_id, text) = (Uuid::new_v4(), text.to_owned());
        self.command(Command::SendPublic { from: self.id, message_id, text }).await;
    }

    /// Acknowledges a private message.
    pub async fn acknowledges(&self, to: MeshId, message_id: &str, kind: ReceiptKind) {
        let message_id = message_id.to_owned();
        self.command(Command::SendReceipt { from: self.id, to, message_id, kind }).await;
    }

    /// Whatever else a node can do.
    ///
    /// # Panics
    ///
    /// If the phone has been switched off.
    pub async fn command(&self, command: Command) {
        self.commands.send(command).await.expect("the phone runs");
    }
}

impl Drop for Phone {
    fn drop(&mut self) {
        self.drive.abort();
    }
}

/// A socket of a test's own.
pub fn socket(name: &str) -> StreamAddress {
    let unique = format!("fieldpost-{name}-{}", Uuid::new_v4().simple());
    StreamAddress::Unix(PathBuf::from("/tmp").join(unique))
}

async fn drive(
    mut node: Node<StdRng>,
    mut radio: StreamRadio,
    mut asked: mpsc::Receiver<Command>,
    told: mpsc::Sender<Report>,
) {
    let start = Instant::now();
    loop {
        let wake = node.next_deadline().unwrap_or(Duration::from_secs(3600));
        let event = tokio::select! {
            event = radio.next() => match event {
                Some(RadioEvent::Up { link, role, max_frame, .. }) => {
                    Event::LinkUp { link, role, max_frame, phone: false }
                }
                Some(RadioEvent::Down { link }) => Event::LinkDown { link },
                Some(RadioEvent::Room { link, frames }) => Event::Room { link, frames },
                Some(RadioEvent::Frame { link, bytes }) => Event::Frame { link, bytes },
                None => return,
            },
            command = asked.recv() => match command {
                Some(command) => Event::Command(command),
                None => return,
            },
            () = sleep_until(start + wake) => Event::Wake,
        };
        let now = now_ms();
        let now = Now { at: start.elapsed(), unix_ms: now };
        let actions: Vec<Action> = node.handle(now, event).collect();
        for action in actions {
            match action {
                // What a full link does not take is lost like on the air.
                Action::Transmit { link, frame } => drop(radio.transmit(link, frame)),
                Action::Disconnect { link } => radio.disconnect(link),
                Action::Report(report) => drop(told.try_send(report)),
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "phones have clocks of their own")]
fn now_ms() -> u64 {
    chrono::Utc::now().timestamp_millis().unsigned_abs()
}
