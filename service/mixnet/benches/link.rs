//! What a covert link costs: its handshake, frames, changes of keys, and the gate's judgement.
//!
//! ```sh
//! cargo bench -p fieldpost-mixnet --bench link
//! ```
//!
//! Each operation is measured in turn with one X25519 of aws-lc, in rounds, so that both see the same
//! machine. The table shows medians and the median of the ratios. Nothing is asserted.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use fieldpost_envelope::Timestamp;
use fieldpost_mixnet::htx::{
    Action, BucketLimits, Capabilities, Dial, Event, FrameHeader, FrameKind, Gate, Identity, Link,
    OpeningHalf, SealingHalf, SecretKey, SessionKeys, Settings, StreamId, TicketKey,
};
use rand::{SeedableRng, rngs::StdRng};

#[expect(clippy::print_stdout, reason = "a bench reports on standard output")]
fn main() {
    // cargo test runs benches, too; there it only has to work.
    let rounds = if std::env::args().any(|argument| argument == "--bench") { 401 } else { 3 };
    let floor = Floor::new();
    println!("| what | median | X25519 | note |\n|---|---|---|---|");
    let own = median((0..rounds * 5).map(|_| floor.measure()).collect());
    println!("| one X25519, aws-lc | {} | 1.00 | the floor |", micros(own));
    let mut row = |what: &str, note: &str, measure: &mut dyn FnMut() -> Duration| {
        let mut times = Vec::new();
        let mut ratios = Vec::new();
        for _ in 0..rounds {
            let before = floor.measure();
            let time = measure();
            let after = floor.measure();
            times.push(time);
            ratios.push(time.as_secs_f64() / ((before + after) / 2).as_secs_f64());
        }
        ratios.sort_by(f64::total_cmp);
        let ratio = ratios[ratios.len() / 2];
        println!("| {what} | {} | {ratio:.2} | {note} |", micros(median(times)));
    };
    handshakes(&mut row);
    frames(&mut row);
    tickets(&mut row);
}

type Row<'a> = dyn FnMut(&str, &str, &mut dyn FnMut() -> Duration) + 'a;

fn handshakes(row: &mut Row<'_>) {
    let mut seed = 0;
    row("handshake, client", "Noise XK and ML-KEM-768, with a fresh key", &mut || {
        seed += 1;
        Handshake::run(seed).client
    });
    row("handshake, server", "", &mut || {
        seed += 1;
        Handshake::run(seed).server
    });
    row("handshake, both sides", "", &mut || {
        seed += 1;
        let run = Handshake::run(seed);
        run.client + run.server
    });
}

fn frames(row: &mut Row<'_>) {
    let keys = || SessionKeys::derive(&[1; 32], (&[2; 32], &[3; 32]), &[4; 32]);
    let payload = vec![7; 16 << 10];
    let stream = StreamId::new(1);
    let mut sealing = SealingHalf::new(keys().client);
    let mut out = Vec::new();
    row("seal 16 KiB", "mean of 16", &mut || {
        if sealing.frames_left() < 32 {
            sealing.seal(FrameKind::KeyUpdate, None, &[], &mut Vec::new());
        }
        time_each(16, || {
            out.clear();
            sealing.seal(FrameKind::Stream, stream, black_box(&payload), &mut out);
        })
    });
    row("open 16 KiB", "mean of 16, header read", &mut || {
        let (mut sealing, mut opening) =
            (SealingHalf::new(keys().client), OpeningHalf::new(keys().client));
        let mut sealed: Vec<_> = (0..16)
            .map(|_| {
                let mut frame = Vec::new();
                sealing.seal(FrameKind::Stream, stream, &payload, &mut frame);
                frame
            })
            .collect();
        let mut next = sealed.iter_mut();
        time_each(16, || {
            let frame = next.next().expect("there are sixteen");
            let (header, length) =
                FrameHeader::decode(frame).expect("a frame").expect("all of its header");
            black_box(opening.open(header.kind, frame, length).expect("ours"));
        })
    });
    row("change of keys, sender", "mean of 16", &mut || {
        let mut sealing = SealingHalf::new(keys().client);
        time_each(16, || {
            out.clear();
            sealing.seal(FrameKind::KeyUpdate, None, &[], &mut out);
        })
    });
    row("change of keys, receiver", "mean of 16", &mut || {
        let (mut sealing, mut opening) =
            (SealingHalf::new(keys().client), OpeningHalf::new(keys().client));
        let mut updates: Vec<_> = (0..16)
            .map(|_| {
                let mut frame = Vec::new();
                sealing.seal(FrameKind::KeyUpdate, None, &[], &mut frame);
                frame
            })
            .collect();
        let mut next = updates.iter_mut();
        time_each(16, || {
            let frame = next.next().expect("there are sixteen");
            opening.open(FrameKind::KeyUpdate, frame, 4).expect("ours");
        })
    });
    let mut run = Handshake::run(0);
    row("1 MiB through both cores", "streams, windows, frames of 16 KiB", &mut || {
        let begin = now();
        run.carry(&vec![7; 1 << 20]);
        begin.elapsed()
    });
}

fn tickets(row: &mut Row<'_>) {
    let secret = SecretKey::from_bytes(&[7; 32]);
    let key = TicketKey { id: [7; 8], public: *secret.public() };
    let mut rng = StdRng::seed_from_u64(1);
    let limits = BucketLimits { burst: u32::MAX, refill_ms: 1, corners: 16 };
    let mut gate = Gate::new(&mut rng, limits);
    gate.add_key(key.id, secret);
    let now = Timestamp::try_from(1_800_000_000_000).expect("a time");
    let address = [192, 0, 2, 1].into();
    row("make a ticket", "a key and two X25519", &mut || {
        time_each(4, || {
            black_box(key.make_ticket(&mut rng, (24, 64), 1_800_000_000).expect("a front's key"));
        })
    });
    let mut rng = StdRng::seed_from_u64(2);
    row("gate: a good ticket", "mean of 4", &mut || {
        let tickets: Vec<_> = (0..4)
            .map(|_| key.make_ticket(&mut rng, (24, 64), 1_800_000_000).expect("a front's key"))
            .collect();
        let mut next = tickets.iter();
        time_each(4, || {
            let ticket = next.next().map(String::as_str);
            gate.check(now, address, ticket).expect("a good ticket");
        })
    });
    let mut forged = key.make_ticket(&mut rng, (24, 64), 1_800_000_000).expect("a front's key");
    forged.replace_range(100..104, "AAAA");
    let strange = TicketKey { id: [8; 8], ..key }
        .make_ticket(&mut rng, (24, 64), 1_800_000_000)
        .expect("a front's key");
    for (what, presented) in [
        ("gate: a forged ticket", Some(forged.as_str())),
        ("gate: a ticket for another key", Some(strange.as_str())),
        ("gate: not a ticket", Some("hello")),
        ("gate: no ticket", None),
    ] {
        row(what, "mean of 4", &mut || {
            time_each(4, || {
                gate.check(now, address, black_box(presented)).expect_err("a bad ticket");
            })
        });
    }
}

/// Two ends in memory, and how long each has worked.
struct Handshake {
    ends: [Link<StdRng>; 2],
    client: Duration,
    server: Duration,
    start: Instant,
}

impl Handshake {
    fn run(seed: u64) -> Self {
        let start = now();
        let (exporter, ticket_key_id) = ([1; 32], [2; 8]);
        let key = SecretKey::from_bytes(&[3; 32]);
        let server = *key.public();
        let parameters = fieldpost_mixnet::htx::Parameters { window: 4 << 20, streams: 4 };
        let settings =
            || Settings { parameters, send_queue: 4 << 20, cover: false, ..Settings::default() };
        let begin = now();
        let dial = Dial {
            exporter,
            ticket_key_id,
            server,
            server_capabilities: Capabilities::default(),
            identity: None,
        };
        let rng = StdRng::seed_from_u64(seed);
        let mut client = Link::dial(start, rng, settings(), dial).expect("a link");
        let first = sent(client.handle(start, Event::Wake));
        let mut spent_client = begin.elapsed();

        let begin = now();
        let identity = Identity { exporter, ticket_key_id, key };
        let rng = StdRng::seed_from_u64(seed + 1);
        let mut server = Link::accept(start, rng, settings(), identity).expect("a link");
        let second = sent(server.handle(start, Event::Receive(&first)));
        let mut spent_server = begin.elapsed();

        let begin = now();
        let third = sent(client.handle(start, Event::Receive(&second)));
        spent_client += begin.elapsed();
        let begin = now();
        let actions = server.handle(start, Event::Receive(&third)).count();
        spent_server += begin.elapsed();
        assert_eq!(actions, 1, "the link is up");
        Self { ends: [client, server], client: spent_client, server: spent_server, start }
    }

    /// Sends data on a stream of its own and reads all of it.
    fn carry(&mut self, data: &[u8]) {
        let [client, server] = &mut self.ends;
        let stream = client.open().expect("few streams are open");
        let mut wire: Vec<Action> =
            client.handle(self.start, Event::Send { stream, data }).collect();
        wire.extend(client.handle(self.start, Event::Finish(stream)));
        let mut came = 0;
        while !wire.is_empty() {
            for action in std::mem::take(&mut wire) {
                let Action::Transmit(bytes) = action else { continue };
                let received: Vec<_> = server.handle(self.start, Event::Receive(&bytes)).collect();
                for action in received {
                    if let Action::Data { data, .. } = action {
                        came += data.len();
                    }
                }
                wire.extend(client.handle(self.start, Event::Transmitted(bytes.len())));
            }
        }
        assert_eq!(came, data.len());
        let end: Vec<_> = server.handle(self.start, Event::Finish(stream)).collect();
        for action in end {
            if let Action::Transmit(bytes) = action {
                server.handle(self.start, Event::Transmitted(bytes.len())).for_each(drop);
                client.handle(self.start, Event::Receive(&bytes)).for_each(drop);
            }
        }
    }
}

struct Floor {
    key: SecretKey,
    other: [u8; 32],
}

impl Floor {
    fn new() -> Self {
        let other = *SecretKey::from_bytes(&[2; 32]).public();
        Self { key: SecretKey::from_bytes(&[1; 32]), other }
    }

    fn measure(&self) -> Duration {
        time_each(4, || {
            black_box(self.key.agree(black_box(&self.other)));
        })
    }
}

fn sent(actions: impl Iterator<Item = Action>) -> Vec<u8> {
    let bytes = |action| if let Action::Transmit(bytes) = action { bytes } else { Vec::new() };
    actions.flat_map(bytes).collect()
}

fn time_each(times: u32, mut operation: impl FnMut()) -> Duration {
    let begin = now();
    for _ in 0..times {
        operation();
    }
    begin.elapsed() / times
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn micros(time: Duration) -> String {
    format!("{:.1} µs", time.as_secs_f64() * 1e6)
}

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn now() -> Instant {
    Instant::now()
}
