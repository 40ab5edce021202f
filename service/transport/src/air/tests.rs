//! The field in virtual time, and radios on sockets.

use std::time::Duration;

use fieldpost_bitchat::Role;
use tokio::time::timeout;

use super::{
    AirRadio, AirServer, JoinError, Scenario,
    medium::{Medium, Out},
    protocol::{ToField, ToRadio},
};
use crate::{LinkIds, Radio, RadioEvent, StreamAddress, TransmitError, radio::next};

const FIELD: &str = r#"{
    "seed": 7, "range_m": 30, "delay_ms": [10, 60],
    "stations": {
        "a": {"path": [{"x": 0, "y": 0}]},
        "b": {"path": [{"x": 25, "y": 0}, {"at_s": 10, "x": 25, "y": 0}, {"at_s": 20, "x": 60, "y": 0}],
              "mtu": 185},
        "c": {"path": [{"x": 50, "y": 0}], "dark_s": [[4, 6]], "max_links": 1},
        "d": {"path": [{"x": 50, "y": 10}]}
    }
}"#;

#[test]
fn links_come_and_go_with_distance_darkness_and_limits() {
    let mut field = Field::new(FIELD);
    for name in ["a", "b", "c", "d"] {
        field.medium.join(name).unwrap();
    }
    assert!(field.medium.join("a").unwrap_err().contains("another radio"));
    let unknown = field.medium.join("nobody").unwrap_err();
    assert!(unknown.contains("no station \"nobody\": there are a, b, c, d"), "{unknown}");
    field.run(1_000);
    // c keeps one link alone, and b was first.
    assert_eq!(field.pairs(), ["a-b", "b-c", "b-d"]);
    field.run(5_000);
    assert_eq!(field.pairs(), ["a-b", "b-d"], "c is dark");
    field.run(8_000);
    assert_eq!(field.pairs(), ["a-b", "b-c", "b-d"]);
    field.run(30_000);
    // b has moved 60 away: out of a's reach and still in that of the others.
    assert_eq!(field.pairs(), ["b-c", "b-d"]);
    let frames: Vec<_> = field
        .log
        .iter()
        .filter_map(|(name, record)| match record {
            ToRadio::Up { max_frame, .. } if name == "b" => Some(*max_frame),
            _ => None,
        })
        .collect();
    assert!(frames.len() >= 4 && frames.iter().all(|most| *most == 182), "{frames:?}");
}

#[test]
fn frames_keep_their_order_take_their_time_and_are_lost_by_their_share() {
    let mut field = Field::new(&FIELD.replace("\"seed\": 7,", "\"seed\": 7, \"loss\": 0.2,"));
    field.medium.join("a").unwrap();
    field.medium.join("b").unwrap();
    field.run(1_000);
    let link = field.link("a");
    for n in 0..200_u8 {
        field.medium.frame(field.now, "a", link, vec![n; 100]);
    }
    field.medium.frame(field.now, "a", link, vec![0; 183]);
    field.medium.frame(field.now, "c", link, vec![0; 10]);
    let sent_at = field.now;
    field.log.clear();
    field.run(1_009);
    assert!(field.log.is_empty(), "nothing is quicker than 10 ms after {sent_at:?}");
    field.run(1_100);
    let came: Vec<u8> = field
        .log
        .iter()
        .filter_map(|(name, record)| match record {
            ToRadio::Frame { bytes, .. } if name == "b" => Some(bytes[0]),
            _ => None,
        })
        .collect();
    assert!(came.is_sorted() && (130..190).contains(&came.len()), "{}", came.len());
    let counters = field.medium.counters();
    assert_eq!((counters.carried, counters.lost), (came.len() as u64, 201 - came.len() as u64));
}

#[test]
fn a_link_that_one_side_closes_rests_before_it_comes_again() {
    let mut field = Field::new(FIELD);
    field.medium.join("a").unwrap();
    field.medium.join("b").unwrap();
    field.run(1_000);
    let link = field.link("a");
    field.medium.disconnect(field.now, "c", link);
    field.run(1_100);
    assert_eq!(field.pairs(), ["a-b"], "it is not c's to close");
    field.medium.disconnect(field.now, "b", link);
    field.run(3_500);
    assert!(field.pairs().is_empty());
    field.run(4_500);
    assert_eq!(field.pairs(), ["a-b"]);
    field.medium.leave("b");
    field.run(4_600);
    assert!(field.pairs().is_empty());
}

#[test]
fn scenarios_that_make_no_sense_are_refused() {
    assert!(Scenario::parse(FIELD).is_ok());
    for (good, bad) in [
        ("\"range_m\": 30", "\"range_m\": -1"),
        ("\"seed\": 7", "\"loss\": 1.5"),
        ("[10, 60]", "[60, 10]"),
        ("\"mtu\": 185", "\"mtu\": 22"),
        ("\"at_s\": 10", "\"at_s\": 30"),
        ("\"seed\"", "\"sead\""),
        ("\"path\": [{\"x\": 0, \"y\": 0}]", "\"path\": []"),
    ] {
        assert!(Scenario::parse(&FIELD.replacen(good, bad, 1)).is_err(), "{bad}");
    }
}

#[test]
fn records_read_back_and_others_are_refused() {
    for record in [
        ToField::Join { name: "a".to_owned() },
        ToField::Frame { link: 5, bytes: vec![1, 2] },
        ToField::Close { link: 6 },
    ] {
        assert_eq!(ToField::decode(&record.encode()), Some(record));
    }
    for record in [
        ToRadio::Up { link: 1, role: Role::Peripheral, max_frame: 512 },
        ToRadio::Down { link: 2 },
        ToRadio::Frame { link: 3, bytes: vec![9; 512] },
        ToRadio::Joined,
        ToRadio::Refused { reason: "no".to_owned() },
    ] {
        assert_eq!(ToRadio::decode(&record.encode()), Some(record));
    }
    for bytes in [&[][..], &[0x81], &[0x02, 1], &[0x55; 20]] {
        assert_eq!((ToField::decode(bytes), ToRadio::decode(bytes)), (None, None));
    }
}

#[tokio::test]
async fn radios_of_two_processes_hear_each_other() {
    let scenario = Scenario::parse(FIELD).unwrap();
    let address: StreamAddress = "tcp:127.0.0.1:0".parse().unwrap();
    let server = AirServer::open(&address, scenario).await.unwrap();
    let join =
        async |name| AirRadio::join(server.address(), name, LinkIds::default()).await.unwrap();
    let (mut a, mut b) = (join("a").await, join("b").await);
    let nobody = AirRadio::join(server.address(), "nobody", LinkIds::default()).await;
    assert!(matches!(nobody, Err(JoinError::Refused(reason)) if reason.contains("no station")));
    let RadioEvent::Up { link: at_a, role, max_frame, phone } = next(&mut a).await else {
        panic!("a link")
    };
    assert_eq!((role, max_frame, phone), (Role::Central, 182, true));
    let RadioEvent::Up { link: at_b, .. } = next(&mut b).await else { panic!("a link") };
    for n in 0..20_u8 {
        a.transmit(at_a, vec![n; 182]).unwrap();
    }
    let too_large = a.transmit(at_a, vec![0; 183]);
    assert_eq!(too_large, Err(TransmitError::TooLarge { size: 183, limit: 182 }));
    for n in 0..20_u8 {
        assert_eq!(next(&mut b).await, RadioEvent::Frame { link: at_b, bytes: vec![n; 182] });
    }
    b.disconnect(at_b);
    assert_eq!(next(&mut a).await, RadioEvent::Down { link: at_a });
    assert_eq!(next(&mut b).await, RadioEvent::Down { link: at_b });
    assert_eq!(a.transmit(at_a, vec![0]), Err(TransmitError::NoLink));
    assert_eq!(server.counters().carried, 20);
    server.shutdown().await;
    while let Some(event) = timeout(Duration::from_secs(20), a.next()).await.unwrap() {
        assert!(matches!(event, RadioEvent::Room { .. }), "{event:?}");
    }
    b.shutdown().await;
}

/// A field whose time the test moves.
struct Field {
    medium: Medium,
    now: Duration,
    log: Vec<Out>,
    up: Vec<(u64, Vec<String>)>,
}

impl Field {
    fn new(scenario: &str) -> Self {
        let medium = Medium::new(Scenario::parse(scenario).unwrap());
        Self { medium, now: Duration::ZERO, log: Vec::new(), up: Vec::new() }
    }

    /// Until so many milliseconds since the start.
    fn run(&mut self, until_ms: u64) {
        let end = Duration::from_millis(until_ms);
        loop {
            let next = self.medium.next_deadline().max(self.now);
            let at = next.min(end);
            self.now = at;
            let out: Vec<_> = self.medium.advance(at).collect();
            for (name, record) in &out {
                match record {
                    ToRadio::Up { link, role: Role::Central, .. } => {
                        self.up.push((*link, vec![name.clone()]));
                    }
                    ToRadio::Up { link, .. } => {
                        let up = self.up.iter_mut().find(|(other, _)| other == link);
                        up.unwrap().1.push(name.clone());
                    }
                    ToRadio::Down { link } => self.up.retain(|(other, _)| other != link),
                    ToRadio::Frame { .. } | ToRadio::Joined | ToRadio::Refused { .. } => {}
                }
            }
            self.log.extend(out);
            if next > end {
                return;
            }
        }
    }

    fn pairs(&self) -> Vec<String> {
        let mut pairs: Vec<_> = self.up.iter().map(|(_, names)| names.join("-")).collect();
        pairs.sort();
        pairs
    }

    fn link(&self, name: &str) -> u64 {
        let up = self.up.iter().find(|(_, names)| names.iter().any(|other| other == name));
        up.unwrap().0
    }
}
