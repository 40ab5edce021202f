//! One node of the mesh on a Bluetooth adapter, steered by lines of JSON: what the tests in
//! `tests/rig` put into their virtual machine.
//!
//! ```text
//! rig_node hci0 NICKNAME     commands on standard input, events on standard output
//! ```
//!
//! Commands: `{"private": {"to": ID, "text": TEXT}}`, `{"public": TEXT}`, `{"gateway": {"to": ID,
//! "bytes": COUNT}}`, `{"verify": ID}`, `{"ping": ID}`, `{"frames": {"to": ID, "count": COUNT,
//! "bytes": SIZE}}` (past the core, straight to the radio), `{"counters": true}`. Private messages
//! are acknowledged as delivered and read.

use std::{
    collections::BTreeMap,
    error::Error,
    io::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::HEXLOWER;
use fieldpost_bitchat::{
    Action, Command, Event, Identity, Limits, LinkId, MeshId, Node, Now, ReceiptKind, Report,
};
use fieldpost_transport::{BluetoothRadio, LinkIds, Radio, RadioEvent, TransmitError};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    time::{Instant, sleep, sleep_until},
};
use uuid::Uuid;

/// What frames that go past the core begin with; no packet does.
const RAW: u8 = 0xEE;
/// Frames past the core that a link is given at once, as many as the core gives it.
const RAW_AT_ONCE: usize = 16;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let adapter = arguments.next().ok_or("name the adapter")?;
    let nickname = arguments.next().ok_or("name the node")?;

    let mut rng: StdRng = rand::make_rng();
    let radio = BluetoothRadio::open(Some(adapter), LinkIds::default(), rng.random());
    let identity = Identity::generate(&mut rng);
    let limits = Limits::default();
    let node = Node::new(StdRng::from_rng(&mut rng), limits, identity, nickname);
    tell(json!({ "event": "node", "id": node.id().to_hex() }));
    let (raw, raw_out) = (BTreeMap::new(), None);
    let mut driver = Driver { node, radio, began: Instant::now(), raw, raw_out };
    driver.run().await
}

struct Driver {
    node: Node<StdRng>,
    radio: BluetoothRadio,
    began: Instant,
    /// Frames past the core that came over each link: how many, bytes, when the first and the last.
    raw: BTreeMap<LinkId, (u64, u64, Instant, Instant)>,
    raw_out: Option<RawOut>,
}

/// Frames past the core on their way out.
struct RawOut {
    link: LinkId,
    size: usize,
    left: u64,
    /// How many the link was given and has not sent.
    given: usize,
}

impl Driver {
    async fn run(&mut self) -> Result<(), Box<dyn Error>> {
        let mut lines = BufReader::new(stdin()).lines();
        let mut status = self.radio.status();
        loop {
            let deadline = self.node.next_deadline().unwrap_or(Duration::from_secs(3600));
            let event = tokio::select! {
                event = self.radio.next() => match event {
                    Some(event) => self.radio_event(event),
                    None => return Err("the radio has shut".into()),
                },
                line = lines.next_line() => match line? {
                    Some(line) => self.command(&serde_json::from_str(&line)?)?,
                    None => break,
                },
                changed = status.changed() => {
                    changed?;
                    let status = status.borrow_and_update();
                    tell(json!({
                        "event": "status", "available": status.is_available(),
                        "central": status.is_central, "peripheral": status.is_peripheral,
                        "text": status.to_string(),
                    }));
                    None
                }
                () = sleep_until(self.began + deadline) => Some(Event::Wake),
            };
            if let Some(event) = event {
                self.handle(event).await;
            }
            self.give_raw();
        }
        self.radio.shutdown().await;
        Ok(())
    }

    fn radio_event(&mut self, event: RadioEvent) -> Option<Event> {
        match event {
            RadioEvent::Up { link, role, max_frame, phone } => {
                let told = format!("{role:?}").to_lowercase();
                tell(
                    json!({ "event": "up", "link": link.0, "role": told, "max_frame": max_frame }),
                );
                Some(Event::LinkUp { link, role, max_frame, phone })
            }
            RadioEvent::Down { link } => {
                tell(json!({ "event": "down", "link": link.0 }));
                Some(Event::LinkDown { link })
            }
            RadioEvent::Room { link, mut frames } => {
                // What was taken of frames past the core is nothing to it.
                if let Some(raw) = self.raw_out.as_mut().filter(|raw| raw.link == link) {
                    let of_raw = raw.given.min(frames);
                    raw.given -= of_raw;
                    frames -= of_raw;
                }
                self.raw_out.take_if(|raw| raw.left == 0 && raw.given == 0);
                Some(Event::Room { link, frames })
            }
            RadioEvent::Frame { link, bytes } if bytes.first() == Some(&RAW) => {
                let now = Instant::now();
                let (frames, size, _, last) = self.raw.entry(link).or_insert((0, 0, now, now));
                (*frames, *size, *last) = (*frames + 1, *size + bytes.len() as u64, now);
                if bytes.get(1) == Some(&1) {
                    let (frames, size, first, last) = self.raw.remove(&link)?;
                    tell(json!({
                        "event": "frames", "link": link.0, "count": frames, "bytes": size,
                        "seconds": (last - first).as_secs_f64(),
                    }));
                }
                None
            }
            RadioEvent::Frame { link, bytes } => Some(Event::Frame { link, bytes }),
        }
    }

    /// Gives a link as many frames past the core as it takes.
    fn give_raw(&mut self) {
        let Some(raw) = &mut self.raw_out else { return };
        while raw.left > 0 && raw.given < RAW_AT_ONCE {
            let mut frame = vec![RAW; raw.size];
            frame[1] = u8::from(raw.left == 1);
            if self.radio.transmit(raw.link, frame).is_err() {
                return;
            }
            raw.left -= 1;
            raw.given += 1;
        }
    }

    async fn handle(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let now = self.now();
            let actions: Vec<_> = self.node.handle(now, event).collect();
            for action in actions {
                match action {
                    Action::Transmit { link, frame } => self.transmit(link, frame).await,
                    Action::Disconnect { link } => self.radio.disconnect(link),
                    Action::Report(report) => events.extend(self.report(report)),
                }
            }
        }
    }

    /// The core keeps to what a link takes; frames past it may be in the way.
    async fn transmit(&self, link: LinkId, frame: Vec<u8>) {
        while let Err(error) = self.radio.transmit(link, frame.clone()) {
            match error {
                TransmitError::Busy { .. } => sleep(Duration::from_millis(2)).await,
                TransmitError::NoLink => return,
                TransmitError::TooLarge { .. } => {
                    tell(json!({ "event": "error", "text": error.to_string() }));
                    return;
                }
            }
        }
    }

    /// Tells a report and gives what is to be answered.
    fn report(&mut self, report: Report) -> Vec<Event> {
        let mut answers = Vec::new();
        let told = match report {
            Report::Peer(peer) => json!({
                "event": "peer", "id": peer.id.to_hex(), "nickname": peer.nickname,
                "hops": peer.hops, "gateway": peer.is_gateway, "verified": peer.is_verified,
            }),
            Report::PeerGone { id, left } => {
                json!({ "event": "gone", "id": id.to_hex(), "left": left })
            }
            Report::Public { from, text, .. } => {
                json!({ "event": "public", "from": from.to_hex(), "text": text })
            }
            Report::Private { to, from, message_id, text } => {
                for kind in [ReceiptKind::Delivered, ReceiptKind::Read] {
                    let message_id = message_id.clone();
                    let receipt = Command::SendReceipt { from: to, to: from, message_id, kind };
                    answers.insert(0, Event::Command(receipt));
                }
                json!({
                    "event": "private", "from": from.to_hex(), "message_id": message_id, "text": text,
                })
            }
            Report::Receipt { to, message_id, kind, .. } => json!({
                "event": "receipt", "to": to.to_hex(), "message_id": message_id.to_string(),
                "kind": format!("{kind:?}").to_lowercase(),
            }),
            Report::Gateway { from, bytes } => json!({
                "event": "gateway", "from": from.to_hex(), "bytes": bytes.len(),
                "sha256": HEXLOWER.encode(&Sha256::digest(&bytes)),
            }),
            Report::File { from, file, .. } => json!({
                "event": "file", "from": from.to_hex(), "bytes": file.content.len(),
            }),
            Report::Sent { id, .. } => json!({ "event": "sent", "id": id.to_string() }),
            Report::Failed { id, reason, .. } => {
                json!({ "event": "failed", "id": id.to_string(), "reason": reason.to_string() })
            }
            Report::Verified { id } => json!({ "event": "verified", "id": id.to_hex() }),
            Report::Pong { from, hops, round_trip } => json!({
                "event": "pong", "from": from.to_hex(), "hops": hops,
                "milliseconds": round_trip.as_millis(),
            }),
            other => json!({ "event": "other", "text": format!("{other:?}") }),
        };
        tell(told);
        answers
    }

    fn command(&mut self, line: &Value) -> Result<Option<Event>, Box<dyn Error>> {
        let from = self.node.id();
        let id = Uuid::from_bytes(rand::make_rng::<StdRng>().random());
        let peer =
            |value: &Value| value.as_str().and_then(MeshId::parse).ok_or("not the id of a peer");
        let command = if let Some(private) = line.get("private") {
            let text = private["text"].as_str().unwrap_or_default().to_owned();
            Command::SendPrivate { from, to: peer(&private["to"])?, message_id: id, text }
        } else if let Some(text) = line.get("public").and_then(Value::as_str) {
            Command::SendPublic { from, message_id: id, text: text.to_owned() }
        } else if let Some(gateway) = line.get("gateway") {
            let mut bytes = vec![0; usize::try_from(gateway["bytes"].as_u64().unwrap_or(0))?];
            rand::Rng::fill_bytes(&mut rand::make_rng::<StdRng>(), &mut bytes);
            let sha256 = HEXLOWER.encode(&Sha256::digest(&bytes));
            tell(json!({ "event": "sending", "id": id.to_string(), "sha256": sha256 }));
            Command::SendGateway { to: peer(&gateway["to"])?, transfer_id: id, bytes }
        } else if let Some(to) = line.get("verify") {
            Command::Verify { from, to: peer(to)? }
        } else if let Some(to) = line.get("ping") {
            Command::Ping { from, to: peer(to)? }
        } else if let Some(frames) = line.get("frames") {
            let number = |name: &str| frames[name].as_u64().ok_or("a number is missing");
            let (to, count) = (peer(&frames["to"])?, number("count")?);
            let link = self.node.way_to(to).ok_or("no link leads to that peer")?;
            let size = usize::try_from(number("bytes")?)?;
            self.raw_out = Some(RawOut { link, size, left: count, given: 0 });
            return Ok(None);
        } else {
            let counters = format!("{:?} {:?}", self.node.counters(), self.node.load());
            tell(json!({ "event": "counters", "text": counters }));
            return Ok(None);
        };
        tell(json!({ "event": "command", "id": id.to_string() }));
        Ok(Some(Event::Command(command)))
    }

    fn now(&self) -> Now {
        #[expect(clippy::disallowed_methods, reason = "packets are dated by the wall clock")]
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
        Now { at: self.began.elapsed(), unix_ms }
    }
}

fn tell(event: Value) {
    let mut stdout = std::io::stdout().lock();
    // Nobody to tell is no reason to fail.
    let _ = writeln!(stdout, "{event}").and_then(|()| stdout.flush());
}
