//! What neighbours may try: memory and airtime stay bounded, what is turned away is counted, and
//! honest peers are served.

use std::{collections::BTreeSet, time::Duration};

use ed25519_dalek::SigningKey;
use fieldpost_bitchat::{
    Header, Identity, Limits, LinkId, MeshId, Packet, PacketType, Report,
    payload::{
        announce::{Announce, Order},
        fragment::Fragment,
    },
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use crate::{
    chain::acknowledge,
    world::{World, seconds},
};

#[test]
fn forged_announces_bind_nothing_and_change_no_keys() {
    let mut scene = Scene::new(1);
    let honest = scene.world.id(1);
    let victim = scene.world.nodes[0].peers().find(|peer| peer.id == honest).unwrap();
    let attacker = Forger::new(9);
    // Another Noise key under the victim's name; the victim's Noise key with keys of his own;
    // his own name without a signature, and with one over other bytes.
    let mut under_name = attacker.announce(&scene, 7);
    under_name.sender = honest;
    let stolen = attacker.signed(&scene, 7, honest, victim.noise_key);
    let mut unsigned = attacker.announce(&scene, 7);
    unsigned.signature = None;
    let mut altered = attacker.announce(&scene, 7);
    altered.timestamp_ms += 1;
    for packet in [under_name, stolen, unsigned, altered] {
        scene.attack(packet.encode());
    }
    scene.world.run(seconds(1));
    let node = &scene.world.nodes[0];
    assert_eq!(node.counters().spoofed, 2);
    assert_eq!(node.counters().unsigned, 2);
    assert_eq!(node.bound(scene.attacker), None);
    let after = node.peers().find(|peer| peer.id == honest).unwrap();
    assert_eq!((after.noise_key, after.signing_key), (victim.noise_key, victim.signing_key));
    let conflict = Report::KeyConflict { id: honest };
    assert!(scene.world.reports_of(0).any(|report| *report == conflict));
    scene.honest_peers_are_served();
}

#[test]
fn a_link_that_a_stray_announce_has_bound_goes_to_whoever_announces_twice_in_a_row() {
    let mut scene = Scene::new(14);
    let (stray, neighbour) = (Forger::new(5), Forger::new(6));
    let mut bound = Vec::new();
    for who in [&stray, &neighbour, &neighbour] {
        let packet = who.announce(&scene, 7);
        scene.attack(packet.encode());
        // The same again says nothing new.
        scene.attack(packet.encode());
        scene.world.run(seconds(12));
        bound.push(scene.world.nodes[0].bound(scene.attacker));
    }
    let [stray, neighbour] = [stray, neighbour].map(|who| Some(who.identity.id()));
    assert_eq!(bound, [stray, stray, neighbour]);
}

#[test]
fn an_announce_with_255_hops_is_no_neighbour_and_goes_no_farther_than_others() {
    let mut scene = Scene::new(2);
    let far = Forger::new(3);
    let packet = far.announce(&scene, 255);
    scene.attack(packet.encode());
    scene.world.run(seconds(1));
    assert_eq!(scene.world.nodes[0].bound(scene.attacker), None);
    let hops = |node: usize| {
        scene.world.nodes[node].peers().find(|peer| peer.id == far.identity.id()).map(|p| p.hops)
    };
    // It arrives at the next node with six left: as if it had started with seven.
    assert_eq!(hops(1), Some(2));
}

#[test]
fn replays_and_stale_packets_are_dropped() {
    let mut scene = Scene::new(3);
    let talker = Forger::new(4);
    let announce = talker.announce(&scene, 7);
    scene.attack(announce.encode());
    let message = talker.message(&scene, "once and never again");
    scene.attack(message.encode());
    scene.world.run(seconds(2));
    let relayed = scene.world.nodes[0].counters().relayed;
    for seconds_later in [1, 60, 100, 250, 400] {
        for packet in [&announce, &message] {
            let mut again = packet.clone();
            again.hops_left = 3;
            scene.attack(packet.encode());
            scene.attack(again.encode());
            again.solicited = true;
            scene.attack(again.encode());
        }
        scene.world.run(seconds(seconds_later));
    }
    for node in 0..3 {
        assert_eq!(scene.world.public_texts(node), ["once and never again"], "node {node}");
    }
    let counters = scene.world.nodes[0].counters();
    assert!(counters.stale >= 12, "{counters:?}");
    assert!(counters.duplicates >= 10, "{counters:?}");
    let own = counters.relayed - relayed;
    let replayed = scene.frames_with(PacketType::MESSAGE);
    assert!(replayed == 0, "{own} relays, {replayed} of the message");
    scene.honest_peers_are_served();
}

#[test]
fn history_is_taken_only_from_a_link_that_was_asked() {
    let mut scene = Scene::new(4);
    let talker = Forger::new(5);
    scene.attack(talker.announce(&scene, 7).encode());
    let mut old = talker.message(&scene, "an hour ago");
    old.timestamp_ms -= 3_600_000;
    old.sign(&talker.signing);
    old.hops_left = 0;
    old.solicited = true;
    scene.attack(old.encode());
    scene.world.run(seconds(1));
    assert!(scene.world.public_texts(0).is_empty());
    let link = scene.attacker;
    scene.world.command(0, fieldpost_bitchat::Command::RequestSync { link });
    scene.world.run(seconds(1));
    let asked = scene.world.heard.iter().filter(|(other, _)| *other == link);
    let asked: Vec<_> = asked
        .map(|(_, frame)| Packet::decode(frame).unwrap())
        .filter(|packet| packet.kind == PacketType::REQUEST_SYNC)
        .collect();
    assert_eq!((asked.len(), asked[0].hops_left), (1, 0));
    scene.attack(old.encode());
    scene.world.run(seconds(1));
    assert_eq!(scene.world.public_texts(0), ["an hour ago"]);
    assert!(scene.world.public_texts(1).is_empty(), "it is not relayed");
    scene.world.run(seconds(31));
    let mut other = talker.message(&scene, "two hours ago");
    other.timestamp_ms -= 7_200_000;
    other.sign(&talker.signing);
    other.solicited = true;
    scene.attack(other.encode());
    scene.world.run(seconds(1));
    assert_eq!(scene.world.public_texts(0).len(), 1);
}

#[test]
fn wrong_signatures_are_neither_shown_nor_passed_on() {
    let mut scene = Scene::new(5);
    let honest = scene.world.id(1);
    let liar = Forger::new(6);
    for n in 0..50 {
        let mut packet = liar.message(&scene, &format!("lie {n}"));
        packet.sender = honest;
        packet.sign(&liar.signing);
        scene.attack(packet.encode());
        scene.world.run(Duration::from_millis(20));
    }
    scene.world.run(seconds(1));
    assert!((0..3).all(|node| scene.world.public_texts(node).is_empty()));
    assert_eq!(scene.world.nodes[0].counters().unsigned, 50);
    assert_eq!(scene.world.nodes[2].counters().unsigned, 0, "none went on");
    scene.honest_peers_are_served();
}

#[test]
fn ten_thousand_peers_fill_a_table_and_displace_nobody_with_a_session() {
    let limits = Limits { peers: 500, new_peers_per_link_a_minute: 60_000, ..Limits::default() };
    let mut scene = Scene::with(6, limits);
    scene.honest_peers_are_served();
    let honest = scene.world.id(2);
    for n in 0..10_000_u32 {
        let stranger = Forger::new(1000 + n);
        scene.attack(stranger.announce(&scene, 6).encode());
        if n % 20 == 0 {
            scene.world.run(Duration::from_millis(100));
        }
    }
    scene.world.run(seconds(5));
    let node = &scene.world.nodes[0];
    assert_eq!(node.load().peers, 500);
    assert!(node.peers().any(|peer| peer.id == honest), "it has a session");
    assert!(node.peers().any(|peer| peer.id == scene.world.id(1)), "it is a neighbour");
    scene.honest_peers_are_served();
    scene.within_limits();
}

#[test]
fn with_the_default_limits_strangers_are_learnt_at_a_rate_and_the_rest_counted() {
    let mut scene = Scene::new(7);
    for n in 0..2_000_u32 {
        scene.attack(Forger::new(1000 + n).announce(&scene, 6).encode());
        if n % 20 == 0 {
            scene.world.run(Duration::from_millis(150));
        }
    }
    scene.world.run(seconds(1));
    let node = &scene.world.nodes[0];
    assert!(node.load().peers < 200, "{:?}", node.load());
    assert!(node.counters().peers_refused > 1_500, "{:?}", node.counters());
    scene.honest_peers_are_served();
}

#[test]
fn endless_fragments_take_bounded_memory_and_honest_sets_come_together() {
    let mut scene = Scene::new(8);
    let mut rng = StdRng::seed_from_u64(1);
    let mut most = 0;
    for n in 0..6_000_u32 {
        let sender = MeshId(rng.random());
        let fragment = Fragment {
            id: rng.random(),
            index: rng.random_range(0..4000),
            total: 4096,
            original: PacketType::FILE,
            data: random(&mut rng, 440),
        };
        let header = Header { sender, ..scene.header(PacketType::FRAGMENT) };
        scene.attack(Packet::new(header, fragment.encode()).encode());
        if n % 20 == 0 {
            scene.world.run(Duration::from_millis(100));
            most = most.max(scene.world.nodes[0].load().set_bytes);
        }
        if n == 3_000 {
            // 1 to 0, in fragments, through the flood.
            let (file_id, file) = (Uuid::from_u128(1), scene.file(20_000));
            let (from, to) = (scene.world.id(1), None);
            let command = fieldpost_bitchat::Command::SendFile { from, to, file_id, file };
            scene.world.command(1, command);
        }
    }
    scene.world.run(seconds(5));
    let limits = Limits::default();
    assert!(most <= limits.set_bytes);
    assert!(scene.world.nodes[0].load().sets <= limits.sets);
    assert!(scene.world.nodes[0].counters().sets_given_up > 1_000);
    let is_file = |report: &&Report| matches!(report, Report::File { .. });
    assert_eq!(scene.world.reports_of(0).filter(is_file).count(), 1);
    scene.world.run(seconds(60));
    assert_eq!(scene.world.nodes[0].load().set_bytes, 0, "all expire");
    scene.honest_peers_are_served();
    scene.within_limits();
}

#[test]
fn contradictory_fragments_do_not_end_an_honest_set() {
    let mut scene = Scene::new(9);
    let talker = Forger::new(7);
    scene.attack(talker.announce(&scene, 7).encode());
    let mut rng = StdRng::seed_from_u64(5);
    let text: String = (0..700).map(|_| char::from(rng.random_range(b' '..=b'~'))).collect();
    let whole = talker.message(&scene, &text);
    let parts = fieldpost_bitchat::fragment::split(&whole, [3; 8], 100, 256).unwrap();
    for part in parts {
        let mut lie = Fragment::decode(part.payload()).unwrap();
        lie.total += 1;
        lie.data = vec![0; 50];
        let header = Header { sender: whole.sender, ..scene.header(PacketType::FRAGMENT) };
        scene.attack(part.encode());
        scene.attack(Packet::new(header, lie.encode()).encode());
    }
    scene.world.run(seconds(1));
    assert_eq!(scene.world.public_texts(0), [text]);
    assert!(scene.world.nodes[0].counters().fragments_refused >= 2);
}

#[test]
fn decompression_bombs_and_noise_are_dropped() {
    let mut scene = Scene::new(10);
    let mut rng = StdRng::seed_from_u64(2);
    // A real bomb: a megabyte of zeros in a thousand bytes, in fragments; and small lies.
    let talker = Forger::new(8);
    scene.attack(talker.announce(&scene, 7).encode());
    let header = Header { sender: talker.identity.id(), ..scene.header(PacketType::FILE) };
    let bomb = Packet::new(header, vec![0; 1_100_000]);
    assert!(bomb.is_compressed() && bomb.encode().len() < 2_000);
    for part in fieldpost_bitchat::fragment::split(&bomb, [1; 8], 400, 256).unwrap() {
        scene.attack(part.encode());
    }
    for n in 0..2_000 {
        let mut frame = vec![2, 2, 7];
        frame.extend_from_slice(&scene.world.time().unix_ms.to_be_bytes());
        frame.push(0x04);
        frame.extend_from_slice(&400_u32.to_be_bytes());
        frame.extend_from_slice(&[9; 8]);
        frame.extend_from_slice(&1_179_760_u32.to_be_bytes());
        frame.extend(random(&mut rng, 396));
        scene.attack(frame);
        scene.attack(random(&mut rng, 300));
        if n % 10 == 0 {
            scene.world.run(Duration::from_millis(110));
        }
    }
    scene.world.run(seconds(1));
    let counters = scene.world.nodes[0].counters();
    assert!(counters.undecodable > 3_500, "{counters:?}");
    assert!(scene.world.reports_of(0).all(|report| !matches!(report, Report::File { .. })));
    scene.honest_peers_are_served();
    scene.within_limits();
}

#[test]
fn a_link_flood_is_cut_to_its_share_and_others_get_theirs() {
    let mut scene = Scene::new(11);
    let talker = Forger::new(9);
    scene.attack(talker.announce(&scene, 7).encode());
    scene.world.run(seconds(1));
    let before = scene.world.nodes[0].counters();
    for n in 0..20_000 {
        scene.attack(talker.message(&scene, &format!("flood {n}")).encode());
        if n % 100 == 0 {
            scene.world.run(Duration::from_millis(50));
        }
    }
    scene.world.run(seconds(1));
    let counters = scene.world.nodes[0].counters();
    let limits = Limits::default();
    // Ten seconds of flood: what one link may send, and its burst.
    let may = u64::from(limits.frames_per_link_a_second) * 14;
    let taken = scene.world.public_texts(0).len() as u64;
    assert!(taken <= may && taken > 1_000, "{taken} of 20000");
    assert!(counters.over_rate > 15_000, "{counters:?}");
    let relayed = counters.relayed - before.relayed;
    assert!(relayed <= u64::from(limits.relays_per_link_a_second) * 14, "{relayed}");
    scene.honest_peers_are_served();
    scene.within_limits();
}

#[test]
fn handshakes_from_strangers_are_limited_and_end_no_session() {
    let mut scene = Scene::new(12);
    scene.honest_peers_are_served();
    let (node, honest) = (scene.world.id(0), scene.world.id(2));
    let mut rng = StdRng::seed_from_u64(3);
    for n in 0..5_000 {
        let sender = if n % 2 == 0 { honest } else { MeshId(rng.random()) };
        let kind =
            if n % 3 == 0 { PacketType::NOISE_ENCRYPTED } else { PacketType::NOISE_HANDSHAKE };
        let length = [32, 64, 96, 50][n % 4];
        let header = Header { sender, recipient: Some(node), ..scene.header(kind) };
        scene.attack(Packet::new(header, random(&mut rng, length)).encode());
        if n % 20 == 0 {
            scene.world.run(Duration::from_millis(100));
        }
    }
    scene.world.run(seconds(1));
    assert!(scene.world.nodes[0].load().sessions <= Limits::default().sessions);
    let counters = scene.world.nodes[0].counters();
    assert!(counters.noise_limited > 500, "{counters:?}");
    assert!(scene.world.nodes[0].has_session(node, honest));
    scene.honest_peers_are_served();
}

#[test]
fn a_flood_of_own_names_is_dropped_as_an_echo() {
    let mut scene = Scene::new(13);
    let own = scene.world.id(0);
    let liar = Forger::new(11);
    for n in 0..50 {
        let mut packet = liar.message(&scene, &format!("not me {n}"));
        packet.sender = own;
        packet.sign(&liar.signing);
        scene.attack(packet.encode());
    }
    scene.world.run(seconds(1));
    assert_eq!(scene.world.nodes[0].counters().echoes, 50);
    assert!((0..3).all(|node| scene.world.public_texts(node).is_empty()));
}

/// Nodes 0, 1 and 2 in line, and somebody with a link to node 0.
struct Scene {
    world: World,
    attacker: LinkId,
    sent: u128,
}

impl Scene {
    fn new(seed: u64) -> Self {
        Self::with(seed, Limits::default())
    }

    fn with(seed: u64, limits: Limits) -> Self {
        let mut world = World::new(200 + seed);
        let [a, b, c] = ["a", "b", "c"].map(|name| world.add_with(name, limits.clone()));
        world.link(a, b);
        world.link(b, c);
        let attacker = world.station(a);
        world.run(seconds(20));
        world.heard.clear();
        Self { world, attacker, sent: 0 }
    }

    fn attack(&mut self, frame: Vec<u8>) {
        self.world.inject(self.attacker, frame);
    }

    fn header(&self, kind: PacketType) -> Header {
        let timestamp_ms = self.world.time().unix_ms;
        Header { kind, hops_left: 7, timestamp_ms, sender: MeshId([1; 8]), recipient: None }
    }

    fn file(&self, length: usize) -> fieldpost_bitchat::payload::file::File {
        let mut rng = StdRng::seed_from_u64(4);
        fieldpost_bitchat::payload::file::File {
            name: Some("photo.jpg".to_owned()),
            mime_type: Some("image/jpeg".to_owned()),
            content: random(&mut rng, length),
            stated_size: Some(length as u64),
        }
    }

    /// A private message from one end to the other and its receipt, within a few seconds.
    fn honest_peers_are_served(&mut self) {
        self.sent += 1;
        let (from, to) = (self.world.id(2), self.world.id(0));
        let (message_id, text) = (Uuid::from_u128(self.sent), format!("honest {}", self.sent));
        let command =
            fieldpost_bitchat::Command::SendPrivate { from, to, message_id, text: text.clone() };
        self.world.command(2, command);
        self.world.run(seconds(7));
        assert!(self.world.private_texts(0).contains(&text), "{text} has not arrived");
        acknowledge(&mut self.world, 0);
        self.world.run(seconds(3));
        let kind = fieldpost_bitchat::ReceiptKind::Delivered;
        let receipt = Report::Receipt { from, to, message_id, kind };
        assert!(self.world.reports_of(2).any(|report| *report == receipt), "{text}: no receipt");
    }

    fn within_limits(&self) {
        let limits = Limits::default();
        for node in &self.world.nodes {
            let load = node.load();
            assert!(load.peers <= limits.peers && load.seen <= limits.seen, "{load:?}");
            assert!(load.held <= limits.held && load.sets <= limits.sets, "{load:?}");
            assert!(load.set_bytes <= limits.set_bytes, "{load:?}");
            assert!(load.waiting_frames <= limits.frames_per_link * load.links, "{load:?}");
            assert!(load.sessions <= limits.sessions, "{load:?}");
        }
    }

    /// How many packets of a type the attacker heard since the scene began, each once.
    fn frames_with(&self, kind: PacketType) -> usize {
        let packets = self.world.heard.iter().filter_map(|(_, frame)| Packet::decode(frame).ok());
        let of_kind = packets.filter(|packet| packet.kind == kind);
        of_kind.map(|packet| packet.encode()).collect::<BTreeSet<_>>().len()
    }
}

/// Somebody with keys of his own.
struct Forger {
    identity: Identity,
    signing: SigningKey,
}

impl Forger {
    fn new(number: u32) -> Self {
        let mut rng = StdRng::seed_from_u64(number.into());
        let (mut noise, mut seed) = ([0; 32], [0; 32]);
        rng.fill_bytes(&mut noise);
        rng.fill_bytes(&mut seed);
        let signing = SigningKey::from_bytes(&seed);
        Self { identity: Identity::from_keys(&noise, &seed), signing }
    }

    fn announce(&self, scene: &Scene, hops: u8) -> Packet {
        self.signed(scene, hops, self.identity.id(), *self.identity.noise_public())
    }

    fn signed(&self, scene: &Scene, hops: u8, sender: MeshId, noise_key: [u8; 32]) -> Packet {
        let announce = Announce {
            nickname: "somebody".to_owned(),
            noise_key,
            signing_key: self.identity.signing_public(),
            ..Announce::default()
        };
        let header = Header { sender, hops_left: hops, ..scene.header(PacketType::ANNOUNCE) };
        let mut packet = Packet::new(header, announce.encode(Order::Apple).unwrap());
        packet.sign(&self.signing);
        packet
    }

    fn message(&self, scene: &Scene, text: &str) -> Packet {
        let header = Header { sender: self.identity.id(), ..scene.header(PacketType::MESSAGE) };
        let mut packet = Packet::new(header, text.as_bytes().to_vec());
        packet.sign(&self.signing);
        packet
    }
}

fn random(rng: &mut StdRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill_bytes(&mut bytes);
    bytes
}
