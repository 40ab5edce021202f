//! What is sent arrives, whatever it is and whichever way it goes.

use std::time::Duration;

use fieldpost_mixnet::sphinx::{
    BuildError, Class, Command, Packet, REPLY_LEN, RelayId, Route, RouteError, RouteStop, Surb,
    SurbId,
};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use crate::fixtures::{EPOCH, hop, public, relay_id, route};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_message_arrives_over_any_route(
        seed: u64, relays in prop::collection::vec((1..20_u8, 0..10_000_u64), 1..=5),
        large: bool, body in prop::collection::vec(any::<u8>(), 0..=2016)
    ) {
        let class = if large { Class::Large } else { Class::Small };
        let stops = relays
            .iter()
            .map(|(relay, delay)| RouteStop {
                id: relay_id(*relay),
                key: public(*relay),
                delay: Duration::from_millis(*delay),
            })
            .collect();
        let route = Route::new(EPOCH, stops).unwrap();
        let mut rng = StdRng::seed_from_u64(seed);
        let mut packet = Packet::build(&mut rng, &route, class, &body).unwrap();
        for (number, (relay, delay)) in relays.iter().enumerate() {
            let done = hop(*relay, &mut packet).unwrap();
            let expected = match relays.get(number + 1) {
                Some((next, _)) => Command::Forward {
                    next: relay_id(*next),
                    delay: Duration::from_millis(*delay),
                },
                None => Command::Deliver,
            };
            prop_assert_eq!(done.command, expected);
        }
        prop_assert_eq!(&packet.body()[..body.len()], &body[..]);
    }

    #[test]
    fn a_reply_arrives_and_opens_with_the_keys_of_its_surb_alone(
        seed: u64, hops in 1..=5_u8, id: [u8; 16],
        reply in prop::collection::vec(any::<u8>(), 0..=REPLY_LEN)
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (surb, keys) = Surb::build(&mut rng, &route(hops), SurbId(id)).unwrap();
        let (_, other) = Surb::build(&mut rng, &route(hops), SurbId(id)).unwrap();
        let surb = Surb::from_bytes(*surb.as_bytes());
        let (first, mut packet) = surb.reply(&mut rng, &reply).unwrap();
        prop_assert_eq!(first, relay_id(1));
        for relay in 1..hops {
            let next = Command::Forward {
                next: relay_id(relay + 1),
                delay: Duration::from_millis(u64::from(relay) * 10),
            };
            prop_assert_eq!(hop(relay, &mut packet).unwrap().command, next);
        }
        let last = hop(hops, &mut packet).unwrap();
        prop_assert_eq!(last.command, Command::Reply { surb: SurbId(id) });
        prop_assert!(other.open(&mut packet.payload_mut().to_vec()).is_err());
        let opened = keys.open(packet.payload_mut()).unwrap();
        prop_assert_eq!(&opened[..reply.len()], &reply[..]);
    }

    #[test]
    fn arbitrary_bytes_are_no_packet(bytes in prop::collection::vec(any::<u8>(), 2400)) {
        let mut packet = Packet::from_bytes(bytes).unwrap();
        prop_assert!(hop(1, &mut packet).is_err());
    }
}

#[test]
fn routes_have_one_to_five_hops() {
    let stop = RouteStop { id: RelayId([1; 32]), key: public(1), delay: Duration::ZERO };
    assert_eq!(Route::new(EPOCH, vec![]), Err(RouteError { hops: 0 }));
    assert_eq!(Route::new(EPOCH, vec![stop; 6]), Err(RouteError { hops: 6 }));
    assert!(Route::new(EPOCH, vec![stop; 5]).is_ok());
}

#[test]
fn a_body_that_is_too_long_is_refused() {
    let mut rng = StdRng::seed_from_u64(1);
    let refused = Packet::build(&mut rng, &route(1), Class::Small, &[0; 2017]);
    assert_eq!(refused, Err(BuildError::Oversize { length: 2017, most: 2016 }));
    let (surb, _) = Surb::build(&mut rng, &route(1), SurbId([0; 16])).unwrap();
    assert!(surb.reply(&mut rng, &[0; REPLY_LEN + 1]).is_err());
}
