//! Two links joined by memory, in virtual time. Each side has a clock of its own.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use fieldpost_mixnet::htx::{
    Action, Capabilities, Dial, Event, Identity, Link, SecretKey, Settings, StreamId,
};
use rand::{SeedableRng, rngs::StdRng};

pub(crate) const EXPORTER: [u8; 32] = [0xe1; 32];
pub(crate) const TICKET_KEY: [u8; 8] = *b"ticketid";

/// One end, with what its driver would hold.
pub(crate) struct End {
    pub(crate) link: Link<StdRng>,
    pub(crate) now: Instant,
    /// Handed over for transmission and not received by the other yet.
    pub(crate) wire: VecDeque<Vec<u8>>,
    /// What happened, transmissions left out.
    pub(crate) seen: Vec<Action>,
    /// Whether transmitted bytes are reported as such.
    pub(crate) carrier_works: bool,
}

impl End {
    pub(crate) fn handle(&mut self, event: Event<'_>) {
        let actions: Vec<_> = self.link.handle(self.now, event).collect();
        for action in actions {
            match action {
                Action::Transmit(bytes) => self.wire.push_back(bytes),
                action => self.seen.push(action),
            }
        }
    }

    /// What was seen since the last time.
    pub(crate) fn news(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.seen)
    }

    pub(crate) fn send(&mut self, stream: StreamId, data: &[u8]) {
        self.handle(Event::Send { stream, data });
    }

    /// The bytes of a stream that came since the last time.
    pub(crate) fn data(&mut self) -> Vec<u8> {
        let seen = std::mem::take(&mut self.seen);
        let (data, rest) =
            seen.into_iter().partition(|action| matches!(action, Action::Data { .. }));
        self.seen = rest;
        let bytes = |action: Action| match action {
            Action::Data { data, .. } => data,
            _ => Vec::new(),
        };
        Vec::into_iter(data).flat_map(bytes).collect()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.link.key_generations().is_some()
    }
}

pub(crate) struct Pair {
    pub(crate) client: End,
    pub(crate) server: End,
}

impl Pair {
    /// Two ends that have not spoken yet.
    pub(crate) fn new(seed: u64, settings: &Settings) -> Self {
        Self::between(seed, settings.clone(), settings.clone(), dial(settings), identity())
    }

    pub(crate) fn between(
        seed: u64,
        client: Settings,
        server: Settings,
        dial: Dial,
        identity: Identity,
    ) -> Self {
        let (start, rng) = (start(), StdRng::seed_from_u64(seed));
        // The server's clock is far from the client's: nothing may depend on it.
        let elsewhere = start + Duration::from_secs(86_400 * 3);
        let mut pair = Self {
            client: End::new(start, Link::dial(start, rng, client, dial).unwrap()),
            server: End::new(
                elsewhere,
                Link::accept(elsewhere, StdRng::seed_from_u64(seed + 1), server, identity).unwrap(),
            ),
        };
        pair.client.handle(Event::Wake);
        pair
    }

    /// Two ends whose link is up.
    pub(crate) fn up(seed: u64, settings: &Settings) -> Self {
        let mut pair = Self::new(seed, settings);
        pair.settle();
        assert!(pair.client.is_up() && pair.server.is_up());
        pair.client.news();
        pair.server.news();
        pair
    }

    /// Carries bytes until both have nothing to say at this moment.
    pub(crate) fn settle(&mut self) {
        while self.carry(true) + self.carry(false) > 0 {}
    }

    /// Carries what waits in one direction; returns the number of bytes.
    pub(crate) fn carry(&mut self, from_client: bool) -> usize {
        let (from, to) = self.ends(from_client);
        let mut carried = 0;
        while let Some(bytes) = from.wire.pop_front() {
            to.handle(Event::Receive(&bytes));
            if from.carrier_works {
                from.handle(Event::Transmitted(bytes.len()));
            }
            carried += bytes.len();
        }
        carried
    }

    /// Lets both clocks run, and carries all that is said meanwhile.
    pub(crate) fn run(&mut self, time: Duration) {
        let mut left = time;
        loop {
            self.settle();
            let until = |end: &End| {
                end.link.next_deadline().map(|at| at.saturating_duration_since(end.now))
            };
            let step = [until(&self.client), until(&self.server)].into_iter().flatten().min();
            let step = step.unwrap_or(left).min(left);
            left -= step;
            for end in [&mut self.client, &mut self.server] {
                end.now += step;
                end.handle(Event::Wake);
            }
            if left.is_zero() {
                return self.settle();
            }
        }
    }

    fn ends(&mut self, from_client: bool) -> (&mut End, &mut End) {
        let Self { client, server } = self;
        if from_client { (client, server) } else { (server, client) }
    }
}

impl End {
    fn new(now: Instant, link: Link<StdRng>) -> Self {
        Self { link, now, wire: VecDeque::new(), seen: Vec::new(), carrier_works: true }
    }
}

pub(crate) fn quiet() -> Settings {
    Settings { cover: false, ..Settings::default() }
}

pub(crate) fn server_key() -> SecretKey {
    SecretKey::from_bytes(&[0x51; 32])
}

pub(crate) fn dial(server: &Settings) -> Dial {
    Dial {
        exporter: EXPORTER,
        ticket_key_id: TICKET_KEY,
        server: *server_key().public(),
        server_capabilities: server.capabilities.clone(),
        identity: None,
    }
}

pub(crate) fn identity() -> Identity {
    Identity { exporter: EXPORTER, ticket_key_id: TICKET_KEY, key: server_key() }
}

pub(crate) fn capabilities(numbers: &[u16]) -> Capabilities {
    Capabilities::new(numbers.iter().map(|number| fieldpost_mixnet::htx::Capability(*number)))
        .unwrap()
}

#[expect(clippy::disallowed_methods, reason = "some instant to count from")]
pub(crate) fn start() -> Instant {
    Instant::now()
}
