//! Two ends of a stream, and somebody who does not keep to the rules.

use std::{io, time::Duration};

use fieldpost_bitchat::{LinkId, MAX_FRAME, Role};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{OUTGOING, StreamAddress, StreamRadio, read};
use crate::{LinkIds, Radio, RadioEvent, TransmitError, radio::next};

#[tokio::test]
async fn frames_cross_a_unix_stream_both_ways_in_order() {
    let folder = Folder::new("both");
    let (mut server, mut client) = pair(&folder.address()).await;
    let (up_there, up_here) = (up(&mut server).await, up(&mut client).await);
    assert_eq!((up_there.1, up_here.1), (Role::Peripheral, Role::Central));
    for n in 0..50_u8 {
        client.transmit(up_here.0, vec![n; 1 + usize::from(n) * 10]).unwrap();
        let event = next(&mut server).await;
        let bytes = vec![n; 1 + usize::from(n) * 10];
        assert_eq!(event, RadioEvent::Frame { link: up_there.0, bytes });
    }
    server.transmit(up_there.0, vec![7; MAX_FRAME]).unwrap();
    let bytes = vec![7; MAX_FRAME];
    assert_eq!(next(&mut client).await, RadioEvent::Frame { link: up_here.0, bytes });
    client.disconnect(up_here.0);
    assert_eq!(next(&mut server).await, RadioEvent::Down { link: up_there.0 });
    server.shutdown().await;
    client.shutdown().await;
    assert!(!folder.0.join("socket").exists(), "the socket is taken away");
}

#[tokio::test]
async fn a_neighbour_that_comes_back_gets_a_new_link() {
    let folder = Folder::new("back");
    let address = folder.address();
    let neighbours = [address.clone()];
    let mut client = StreamRadio::open(&[], &neighbours, LinkIds::default(), 1).await.unwrap();
    let mut links = Vec::new();
    for _ in 0..3 {
        let listen = [address.clone()];
        let mut server = StreamRadio::open(&listen, &[], LinkIds::default(), 2).await.unwrap();
        let (link, _) = up(&mut client).await;
        links.push(link);
        up(&mut server).await;
        server.shutdown().await;
        assert_eq!(next(&mut client).await, RadioEvent::Down { link });
    }
    assert_eq!(links, [LinkId(0), LinkId(1), LinkId(2)]);
    client.shutdown().await;
}

#[tokio::test]
async fn whoever_says_what_is_no_frame_is_cut_off_and_others_are_not() {
    let any: StreamAddress = "tcp:127.0.0.1:0".parse().unwrap();
    let StreamAddress::Tcp(address) = any.listen().await.unwrap().address().unwrap() else {
        panic!("a port")
    };
    let listen = [StreamAddress::Tcp(address)];
    let mut server = StreamRadio::open(&listen, &[], LinkIds::default(), 3).await.unwrap();
    let mut good = TcpStream::connect(address).await.unwrap();
    let (good_link, _) = up(&mut server).await;
    for record in [vec![0, 0, 0, 0], vec![0, 0, 2, 1], vec![255; 8], vec![0, 0, 0, 9, 1]] {
        let mut bad = TcpStream::connect(address).await.unwrap();
        let (link, _) = up(&mut server).await;
        bad.write_all(&record).await.unwrap();
        bad.shutdown().await.unwrap();
        assert_eq!(next(&mut server).await, RadioEvent::Down { link });
    }
    good.write_all(&[0, 0, 0, 2, 8, 9]).await.unwrap();
    let bytes = vec![8, 9];
    assert_eq!(next(&mut server).await, RadioEvent::Frame { link: good_link, bytes });
    server.transmit(good_link, vec![1]).unwrap();
    let mut record = [0; 5];
    good.read_exact(&mut record).await.unwrap();
    assert_eq!(record, [0, 0, 0, 1, 1]);
}

#[tokio::test]
async fn a_link_that_does_not_drain_refuses_more_and_keeps_what_it_took() {
    let folder = Folder::new("busy");
    let (mut server, mut client) = pair(&folder.address()).await;
    let (link, _) = up(&mut client).await;
    up(&mut server).await;
    // Nothing awaits in between, so nothing drains.
    let results: Vec<_> = (0..OUTGOING + 3).map(|n| client.transmit(link, vec![n as u8])).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), OUTGOING);
    assert_eq!(results.last(), Some(&Err(TransmitError::Busy { limit: OUTGOING })));
    for n in 0..OUTGOING {
        let event = next(&mut server).await;
        assert!(matches!(event, RadioEvent::Frame { bytes, .. } if bytes == [n as u8]));
    }
    let large = client.transmit(link, vec![0; MAX_FRAME + 1]);
    assert_eq!(large, Err(TransmitError::TooLarge { size: MAX_FRAME + 1, limit: MAX_FRAME }));
    assert_eq!(client.transmit(LinkId(99), vec![0]), Err(TransmitError::NoLink));
}

#[tokio::test]
async fn a_reader_that_is_behind_holds_its_neighbour_up_and_loses_nothing() {
    let folder = Folder::new("behind");
    let (mut server, mut client) = pair(&folder.address()).await;
    let (link, _) = up(&mut client).await;
    up(&mut server).await;
    let mut taken = 0_u32;
    let mut refused = 0;
    // Until the neighbour, the socket and the queue are all full.
    while refused < 200 {
        let mut frame = vec![0; MAX_FRAME];
        frame[..4].copy_from_slice(&taken.to_be_bytes());
        match client.transmit(link, frame) {
            Ok(()) => taken += 1,
            Err(_) => {
                refused += 1;
                tokio::task::yield_now().await;
            }
        }
        assert!(taken < 100_000, "there is no end to it");
    }
    let telling = tokio::spawn(async move { while client.next().await.is_some() {} });
    for n in 0..taken {
        let RadioEvent::Frame { bytes, .. } = next(&mut server).await else { panic!("a frame") };
        assert_eq!(bytes[..4], n.to_be_bytes());
    }
    telling.abort();
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_that_stops_in_the_middle_of_a_record_is_let_go() {
    let (ours, mut theirs) = tokio::io::duplex(64);
    theirs.write_all(&[0, 0, 0, 9, 1, 2]).await.unwrap();
    let mut reader = ours;
    let error = read(&mut reader, MAX_FRAME).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn what_a_link_has_sent_makes_room() {
    let folder = Folder::new("room");
    let (mut server, mut client) = pair(&folder.address()).await;
    let (link, _) = up(&mut client).await;
    up(&mut server).await;
    client.transmit(link, vec![1]).unwrap();
    for frames in [OUTGOING, 1] {
        let room = timeout(Duration::from_secs(20), client.next()).await.expect("room");
        assert_eq!(room, Some(RadioEvent::Room { link, frames }));
    }
}

#[test]
fn addresses_lead_to_this_machine_alone() {
    for text in ["unix:/run/fieldpost/ble", "tcp:127.0.0.1:7000", "tcp:[::1]:7000"] {
        assert_eq!(text.parse::<StreamAddress>().unwrap().to_string(), text);
    }
    for text in ["tcp:0.0.0.0:7000", "tcp:192.0.2.1:7000", "tcp:host:1", "unix:", "udp:1", ""] {
        assert!(text.parse::<StreamAddress>().is_err(), "{text}");
    }
}

async fn pair(address: &StreamAddress) -> (StreamRadio, StreamRadio) {
    let addresses = [address.clone()];
    let server = StreamRadio::open(&addresses, &[], LinkIds::default(), 1).await.unwrap();
    let client = StreamRadio::open(&[], &addresses, LinkIds::default(), 2).await.unwrap();
    (server, client)
}

async fn up(radio: &mut StreamRadio) -> (LinkId, Role) {
    match next(radio).await {
        RadioEvent::Up { link, role, .. } => (link, role),
        other => panic!("{other:?}"),
    }
}

/// A folder of one test's own.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fieldpost-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn address(&self) -> StreamAddress {
        StreamAddress::Unix(self.0.join("socket"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
