//! Cores of BitChat over real sockets: a – b over a stream, b – c through the air, in real time.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::time::Duration;

use fieldpost_bitchat::{
    Action, Command, Event, Identity, Limits, MeshId, Node, Now, ReceiptKind, Report,
};
use fieldpost_transport::{
    AirRadio, AirServer, LinkIds, Radio, RadioEvent, Scenario, StreamAddress, StreamRadio,
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use uuid::Uuid;

const EPOCH_MS: u64 = 1_790_000_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_and_bytes_cross_a_stream_and_the_air_and_come_back_confirmed() {
    let scenario = r#"{"range_m": 10, "stations": {
        "b": {"path": [{"x": 0, "y": 0}]}, "c": {"path": [{"x": 5, "y": 0}], "mtu": 247}
    }}"#;
    let loopback: StreamAddress = "tcp:127.0.0.1:0".parse().unwrap();
    let air = AirServer::open(&loopback, Scenario::parse(scenario).unwrap()).await.unwrap();
    let folder = std::env::temp_dir().join(format!("fieldpost-radios-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let socket = [StreamAddress::Unix(folder.join("b"))];

    let ids: [LinkIds; 3] = Default::default();
    let start = Instant::now();
    let stream =
        |listen, neighbours, ids: &LinkIds| StreamRadio::open(listen, neighbours, ids.clone(), 1);
    let b_stream = stream(&socket, &[], &ids[1]).await.unwrap();
    let a_stream = stream(&[], &socket, &ids[0]).await.unwrap();
    let b_air = AirRadio::join(air.address(), "b", ids[1].clone()).await.unwrap();
    let c_air = AirRadio::join(air.address(), "c", ids[2].clone()).await.unwrap();
    let mut a = Peer::start(1, start, vec![Box::new(a_stream)]);
    let mut b = Peer::start(2, start, vec![Box::new(b_stream), Box::new(b_air)]);
    let mut c = Peer::start(3, start, vec![Box::new(c_air)]);

    let (from, to) = (a.id, c.id);
    a.until(|report| matches!(report, Report::Peer(peer) if peer.id == to)).await;
    let (message_id, text) = (Uuid::from_u128(1), "over two kinds of link".to_owned());
    a.say(Command::SendPrivate { from, to, message_id, text: text.clone() }).await;
    let came = c.until(|report| matches!(report, Report::Private { .. })).await;
    let Report::Private { message_id: id, text: read, .. } = came else { panic!("a message") };
    assert_eq!(read, text);
    let kind = ReceiptKind::Delivered;
    c.say(Command::SendReceipt { from: to, to: from, message_id: id, kind }).await;
    let receipt = Report::Receipt { from, to, message_id, kind };
    a.until(|report| *report == receipt).await;

    let bytes: Vec<u8> = (0..20_000_u32).map(|n| ((n * n) >> 3) as u8).collect();
    let transfer_id = Uuid::from_u128(2);
    a.say(Command::SendGateway { to, transfer_id, bytes: bytes.clone() }).await;
    let whole = Report::Gateway { from, bytes };
    c.until(|report| *report == whole).await;
    a.until(|report| matches!(report, Report::Sent { id, .. } if *id == transfer_id)).await;
    assert!(b.reports.try_recv().is_ok(), "b has heard of its neighbours");
    for peer in [a, b, c] {
        peer.stop().await;
    }
    air.shutdown().await;
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A core and the loop that joins it to its radios.
struct Peer {
    id: MeshId,
    commands: mpsc::Sender<Command>,
    reports: mpsc::Receiver<Report>,
    driver: JoinHandle<()>,
}

impl Peer {
    fn start(seed: u64, start: Instant, radios: Vec<Box<dyn Radio>>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let identity = Identity::generate(&mut rng);
        let node = Node::new(rng, Limits::default(), identity, format!("peer {seed}"));
        let id = node.id();
        let (commands, hear) = mpsc::channel(16);
        let (report, reports) = mpsc::channel(1024);
        let driver = tokio::spawn(drive(node, start, radios, hear, report));
        Self { id, commands, reports, driver }
    }

    async fn say(&self, command: Command) {
        self.commands.send(command).await.unwrap();
    }

    async fn until(&mut self, is: impl Fn(&Report) -> bool) -> Report {
        let search = async {
            loop {
                let report = self.reports.recv().await.expect("the driver runs");
                if is(&report) {
                    return report;
                }
            }
        };
        timeout(Duration::from_secs(60), search).await.expect("it is reported")
    }

    async fn stop(self) {
        drop(self.commands);
        self.driver.await.unwrap();
    }
}

async fn drive(
    mut node: Node<StdRng>,
    start: Instant,
    mut radios: Vec<Box<dyn Radio>>,
    mut commands: mpsc::Receiver<Command>,
    reports: mpsc::Sender<Report>,
) {
    loop {
        let deadline =
            node.next_deadline().map_or(start + Duration::from_secs(3600), |at| start + at);
        let event = tokio::select! {
            event = any(&mut radios) => match event {
                RadioEvent::Up { link, role, max_frame, phone } => {
                    Event::LinkUp { link, role, max_frame, phone }
                }
                RadioEvent::Down { link } => Event::LinkDown { link },
                RadioEvent::Room { link, frames } => Event::Room { link, frames },
                RadioEvent::Frame { link, bytes } => Event::Frame { link, bytes },
            },
            command = commands.recv() => match command {
                Some(command) => Event::Command(command),
                None => break,
            },
            () = sleep_until(deadline) => Event::Wake,
        };
        let at = start.elapsed();
        let now = Now { at, unix_ms: EPOCH_MS + at.as_millis() as u64 };
        for action in node.handle(now, event) {
            match action {
                // A link that is busy or gone loses the frame, as a radio does.
                Action::Transmit { link, frame } => {
                    _ = radios.iter().any(|radio| radio.transmit(link, frame.clone()).is_ok());
                }
                Action::Disconnect { link } => radios.iter().for_each(|r| r.disconnect(link)),
                Action::Report(report) => _ = reports.try_send(report),
            }
        }
    }
    for radio in &mut radios {
        radio.shutdown().await;
    }
}

/// What happens next on any of one or two radios.
async fn any(radios: &mut [Box<dyn Radio>]) -> RadioEvent {
    let event = match radios {
        [one] => one.next().await,
        [one, other] => tokio::select! {
            event = one.next() => event,
            event = other.next() => event,
        },
        _ => None,
    };
    match event {
        Some(event) => event,
        None => std::future::pending().await,
    }
}
