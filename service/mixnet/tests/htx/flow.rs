use fieldpost_mixnet::htx::{
    Action, Closed, Event, FRAMES_PER_KEY, OpenStreamError, Parameters, SendError, Settings,
    StreamId,
};

use crate::pair::{Pair, quiet};

#[test]
fn data_of_both_directions_arrives_in_order_and_ends() {
    let mut pair = Pair::up(1, &quiet());
    let (up, down) = (pair.client.link.open().unwrap(), pair.server.link.open().unwrap());
    assert_eq!((up.get(), down.get()), (1, 2));
    let text: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    pair.client.send(up, &text);
    pair.client.news();
    pair.server.send(down, &text[..1_000]);
    pair.client.handle(Event::Finish(up));
    pair.settle();
    assert_eq!(pair.server.data(), text);
    assert_eq!(pair.client.data(), text[..1_000]);
    assert_eq!(pair.server.news(), [Action::Ended(up)]);
    pair.server.send(up, b"answer");
    pair.server.handle(Event::Finish(up));
    pair.settle();
    assert_eq!(pair.client.data(), b"answer");
    assert_eq!(pair.client.news(), [Action::Ended(up)]);
    pair.client.send(up, b"late");
    let rejected = Action::Rejected { stream: up, reason: SendError::NotOpen };
    assert_eq!(pair.client.news(), [rejected]);
}

#[test]
fn a_sender_stops_at_the_window_and_goes_on_when_half_of_it_is_consumed() {
    let parameters = Parameters { window: 100_000, streams: 4 };
    let settings = Settings { parameters, send_queue: 1 << 20, ..quiet() };
    let mut pair = Pair::up(1, &settings);
    let stream = pair.client.link.open().unwrap();
    pair.client.send(stream, &[7; 300_000]);
    pair.settle();
    assert_eq!(pair.server.data().len(), 100_000);
    pair.server.handle(Event::Consumed { stream, bytes: 49_999 });
    pair.settle();
    assert_eq!(pair.server.data().len(), 0, "less than half was consumed");
    pair.server.handle(Event::Consumed { stream, bytes: 1 });
    pair.settle();
    assert_eq!(pair.server.data().len(), 50_000);
    pair.server.handle(Event::Consumed { stream, bytes: 1_000_000 });
    pair.settle();
    assert_eq!(pair.server.data().len(), 100_000, "no more than came is consumed");
}

#[test]
fn a_full_queue_rejects_whole_and_says_when_to_try_again() {
    let parameters = Parameters { window: 65_535, streams: 4 };
    let mut pair = Pair::up(1, &Settings { parameters, send_queue: 100_000, ..quiet() });
    let stream = pair.client.link.open().unwrap();
    pair.client.send(stream, &[1; 100_000]);
    // 65 535 have left already.
    assert_eq!(pair.client.news(), [Action::Writable(stream)]);
    assert_eq!(pair.client.link.send_room(stream), 65_535);
    pair.client.send(stream, &[2; 65_536]);
    let reason = SendError::Full { length: 65_536, room: 65_535 };
    assert_eq!(pair.client.news(), [Action::Rejected { stream, reason }]);
    pair.settle();
    let came = pair.server.data().len();
    pair.server.handle(Event::Consumed { stream, bytes: came });
    pair.settle();
    assert_eq!(pair.client.news(), [Action::Writable(stream)]);
    assert_eq!(pair.server.data(), vec![1; 100_000 - came]);
}

#[test]
fn a_slow_carrier_holds_back_more_than_its_room() {
    let settings = Settings { carrier_room: 50_000, send_queue: 1 << 20, ..quiet() };
    let mut pair = Pair::up(1, &settings);
    pair.client.carrier_works = false;
    let stream = pair.client.link.open().unwrap();
    pair.client.send(stream, &[1; 900_000]);
    let sealed: usize = pair.client.wire.iter().map(Vec::len).sum();
    assert!((50_000..50_000 + 17_000).contains(&sealed), "{sealed}");
    pair.client.handle(Event::Transmitted(30_000));
    let more: usize = pair.client.wire.iter().map(Vec::len).sum();
    assert!((sealed + 14_000..sealed + 47_000).contains(&more), "{more}");
}

#[test]
fn streams_take_turns() {
    let mut pair = Pair::up(1, &Settings { carrier_room: 1, ..quiet() });
    pair.client.carrier_works = false;
    let streams: Vec<_> = (0..3).map(|_| pair.client.link.open().unwrap()).collect();
    for stream in &streams {
        pair.client.send(*stream, &[1; 60_000]);
    }
    let mut order = Vec::new();
    while let Some(frame) = pair.client.wire.pop_front() {
        pair.server.handle(Event::Receive(&frame));
        if let Some(Action::Data { stream, .. }) = pair.server.seen.pop() {
            order.push(stream.get());
        }
        pair.client.handle(Event::Transmitted(frame.len()));
    }
    assert_eq!(order, [1, 3, 5, 1, 3, 5, 1, 3, 5, 1, 3, 5]);
}

#[test]
fn no_more_streams_are_opened_than_the_other_keeps() {
    let parameters = Parameters { window: 65_535, streams: 2 };
    let mut pair = Pair::up(1, &Settings { parameters, ..quiet() });
    let first = pair.client.link.open().unwrap();
    let second = pair.client.link.open().unwrap();
    assert_eq!(pair.client.link.open(), Err(OpenStreamError::NoneLeft));
    pair.client.send(second, b"second");
    pair.client.handle(Event::Finish(first));
    pair.client.handle(Event::Finish(second));
    pair.settle();
    pair.server.handle(Event::Finish(first));
    pair.settle();
    assert_eq!(pair.client.link.open().map(StreamId::get), Ok(5));
}

#[test]
fn a_key_is_changed_before_it_is_used_up_without_a_round_trip() {
    let parameters = Parameters { window: 16 << 20, streams: 4 };
    let mut pair = Pair::up(1, &Settings { parameters, ..quiet() });
    let stream = pair.client.link.open().unwrap();
    for sent in 0..FRAMES_PER_KEY + 10 {
        pair.client.send(stream, &sent.to_be_bytes());
        pair.carry(true);
    }
    assert_eq!(pair.client.link.key_generations(), Some((1, 0)));
    assert_eq!(pair.server.link.key_generations(), Some((0, 1)));
    assert!(pair.server.wire.is_empty(), "nothing had to be answered");
    let data = pair.server.data();
    let numbers: Vec<u64> = data.as_chunks().0.iter().map(|n| u64::from_be_bytes(*n)).collect();
    assert!(numbers.iter().copied().eq(0..FRAMES_PER_KEY + 10));
}

#[test]
fn either_side_may_close_and_a_lost_carrier_ends_the_link() {
    let mut pair = Pair::up(1, &quiet());
    pair.server.handle(Event::Close);
    assert_eq!(pair.server.news(), [Action::Closed(Closed::ByUs)]);
    pair.settle();
    assert_eq!(pair.client.news(), [Action::Closed(Closed::ByPeer(0))]);
    for end in [&mut pair.client, &mut pair.server] {
        assert_eq!(end.link.next_deadline(), None);
        assert_eq!(end.link.open(), Err(OpenStreamError::NotUp));
        end.handle(Event::Receive(b"anything"));
        end.handle(Event::Close);
        assert!(end.news().is_empty() && end.wire.is_empty());
    }
    let mut pair = Pair::up(1, &quiet());
    pair.client.handle(Event::Lost);
    assert_eq!(pair.client.news(), [Action::Closed(Closed::Lost)]);
    assert!(pair.client.wire.is_empty());
}

#[test]
fn nothing_is_sent_before_the_link_is_up() {
    let mut pair = Pair::new(1, &quiet());
    assert_eq!(pair.client.link.open(), Err(OpenStreamError::NotUp));
    let stream = StreamId::new(1).unwrap();
    pair.client.send(stream, b"early");
    let rejected = Action::Rejected { stream, reason: SendError::NotOpen };
    assert_eq!(pair.client.news(), [rejected]);
}
