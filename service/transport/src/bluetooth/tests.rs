//! What holds without an adapter. Real ones are tried in the rig (`tests/rig`).

use std::future::pending;

use fieldpost_bitchat::Role;
use futures_util::stream::{self, unfold};
use tokio::time::timeout;

use super::{
    links::{Ended, Outlet},
    *,
};

/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn without_what_it_asks_for_the_radio_says_why_and_shuts_cleanly() {
    let mut radio = BluetoothRadio::open(Some("hci4711".to_owned()), LinkIds::default(), 1);
    let mut status = radio.status();
    let told = timeout(LONG, status.wait_for(|status| status.problem.is_some()));
    let told = told.await.unwrap().unwrap().clone();
    assert!(!told.is_available());
    assert!(told.to_string().starts_with("unavailable: "), "{told}");
    assert_eq!(radio.transmit(LinkId(1), vec![1]), Err(TransmitError::NoLink));
    radio.shutdown().await;
    assert_eq!(radio.next().await, None);
}

#[tokio::test]
async fn a_link_carries_frames_both_ways_in_order_and_says_when_it_is_gone() {
    let (links, mut events) = links();
    let link = links.open(Role::Central, 517).await;
    let id = link.id;
    let up = RadioEvent::Up { link: id, role: Role::Central, max_frame: 512, phone: true };
    assert_eq!(next(&mut events).await, Some(up));

    let (heard, hearing) = mpsc::channel(8);
    let (sent, mut sending) = mpsc::channel(8);
    let incoming =
        unfold(hearing, |mut hearing| async move { Some((hearing.recv().await?, hearing)) });
    let running = tokio::spawn(link.run(incoming, Sink(sent), pending()));
    for number in 1..=3 {
        links.transmit(id, vec![number]).unwrap();
        assert_eq!(sending.recv().await, Some(vec![number]));
        heard.send(vec![number, 0]).await.unwrap();
        let frame = RadioEvent::Frame { link: id, bytes: vec![number, 0] };
        assert_eq!(next(&mut events).await, Some(frame));
    }
    let too_large = TransmitError::TooLarge { size: 513, limit: 512 };
    assert_eq!(links.transmit(id, vec![0; 513]), Err(too_large));

    drop(heard);
    assert_eq!(running.await.unwrap(), Ended::Lost);
    assert_eq!(next(&mut events).await, Some(RadioEvent::Down { link: id }));
    assert_eq!(links.transmit(id, vec![1]), Err(TransmitError::NoLink));
}

#[tokio::test]
async fn a_link_that_is_closed_still_sends_what_it_had_taken() {
    let (links, mut events) = links();
    let link = links.open(Role::Peripheral, 100).await;
    let id = link.id;
    for number in 0..10 {
        links.transmit(id, vec![number]).unwrap();
    }
    links.disconnect(id);
    assert_eq!(links.transmit(id, vec![1]), Err(TransmitError::NoLink));
    let (sent, mut sending) = mpsc::channel(16);
    assert_eq!(link.run(stream::pending(), Sink(sent), pending()).await, Ended::Closed);
    for number in 0..10 {
        assert_eq!(sending.recv().await, Some(vec![number]));
    }
    assert!(matches!(next(&mut events).await, Some(RadioEvent::Up { .. })));
    assert_eq!(next(&mut events).await, Some(RadioEvent::Down { link: id }));
}

#[tokio::test(start_paused = true)]
async fn a_link_on_which_nothing_comes_or_nothing_goes_is_dead() {
    let (links, _events) = links();
    let silent = links.open(Role::Central, 512).await;
    let (sent, _sending) = mpsc::channel(1);
    assert_eq!(silent.run(stream::pending(), Sink(sent), pending()).await, Ended::Silent);

    let stuck = links.open(Role::Central, 512).await;
    let (full, _sending) = mpsc::channel(1);
    full.try_send(vec![0]).unwrap();
    links.transmit(stuck.id, vec![1]).unwrap();
    assert_eq!(stuck.run(stream::pending(), Sink(full), pending()).await, Ended::Lost);
}

#[tokio::test]
async fn a_queue_that_is_full_refuses_and_the_status_counts_links_by_role() {
    let (links, _events) = links();
    let made = links.open(Role::Central, 512).await;
    let _taken = links.open(Role::Peripheral, 512).await;
    let refused = (0..100).find_map(|_| links.transmit(made.id, vec![1]).err());
    assert_eq!(refused, Some(TransmitError::Busy { limit: 16 }));
    let status = links.status().borrow().clone();
    assert_eq!((status.central_links, status.peripheral_links), (1, 1));
    links.close_all().await;
    assert_eq!(links.len(), 0);
}

#[tokio::test]
async fn a_link_tells_how_much_it_takes() {
    let (links, mut events) = links();
    let link = links.open(Role::Central, 512).await;
    let id = link.id;
    let (sent, mut sending) = mpsc::channel(64);
    let running = tokio::spawn(link.run(stream::pending(), Sink(sent), pending()));
    for number in 0..10 {
        links.transmit(id, vec![number]).unwrap();
    }
    let mut room = 0;
    while room < 16 + 10 {
        if let Some(RadioEvent::Room { frames, .. }) = events.recv().await {
            room += frames;
        }
    }
    assert_eq!((room, sending.len()), (26, 10));
    sending.close();
    running.abort();
}

#[tokio::test]
async fn who_is_connected_and_hears_us_no_more_is_told_once() {
    let (links, _events) = links();
    links.note_mute("00:11:22:33:44:55".to_owned());
    assert_eq!(links.next_mute().await, ["00:11:22:33:44:55".to_owned()].into());
    let again = timeout(Duration::from_millis(10), links.next_mute());
    assert!(again.await.is_err());
}

#[tokio::test]
async fn what_a_device_writes_belongs_to_the_link_that_we_made_to_it() {
    let (links, mut events) = links();
    let link = links.open(Role::Central, 512).await;
    let address = "00:11:22:33:44:55";
    assert_eq!(links.made_to(address), None);
    links.set_made(address.to_owned(), link.id);
    assert_eq!(links.made_to(address), Some(link.id));
    next(&mut events).await;
    assert!(links.heard(link.id, vec![7]).await);
    let frame = RadioEvent::Frame { link: link.id, bytes: vec![7] };
    assert_eq!(next(&mut events).await, Some(frame));
    links.close(link.id).await;
    assert_eq!(links.made_to(address), None);
    assert!(!links.heard(link.id, vec![7]).await);
}

fn links() -> (Links, mpsc::Receiver<RadioEvent>) {
    let (sender, events) = mpsc::channel(64);
    let (status, _) = watch::channel(BluetoothStatus::default());
    (Links::new(LinkIds::default(), sender, status), events)
}

/// What happens next, but for room.
async fn next(events: &mut mpsc::Receiver<RadioEvent>) -> Option<RadioEvent> {
    loop {
        match events.recv().await {
            Some(RadioEvent::Room { .. }) => {}
            event => return event,
        }
    }
}

struct Sink(mpsc::Sender<Vec<u8>>);

impl Outlet for Sink {
    async fn send(&mut self, frame: Vec<u8>) -> bool {
        self.0.send(frame).await.is_ok()
    }
}
