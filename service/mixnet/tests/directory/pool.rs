use fieldpost_mixnet::directory::{
    Certificate, Descriptor, Neighbour, Pool, PoolError, SignedDescriptor,
};

use crate::fixtures::{EPOCH, clock, descriptor, id, key, signed, time};

#[test]
fn the_newest_descriptor_of_a_node_is_kept_and_no_older_one() {
    let mut pool = Pool::new(clock());
    let [old, new] = [EPOCH, EPOCH + 1].map(|epoch| signed(&descriptor(1, epoch)));
    assert!(offer(&mut pool, &old).unwrap());
    assert!(!offer(&mut pool, &old).unwrap(), "no news");
    assert!(offer(&mut pool, &new).unwrap());
    assert!(!offer(&mut pool, &old).unwrap());
    assert_eq!(pool.descriptor(&id(1)), Some(&new));
    // Within an epoch, the longer certificate is the newer one.
    let node = key(1).verifying_key();
    let certified = |seconds| {
        let certificate = Certificate::issue(&key(0xaa), &node, time(seconds));
        signed(&Descriptor { certificate: Some(certificate), ..descriptor(1, EPOCH + 1) })
    };
    assert!(offer(&mut pool, &certified(100)).unwrap());
    assert!(offer(&mut pool, &certified(200)).unwrap());
    assert!(!offer(&mut pool, &certified(150)).unwrap());
}

#[test]
fn what_is_forged_or_of_another_time_is_refused() {
    let mut pool = Pool::new(clock());
    let mut bytes = signed(&descriptor(1, EPOCH)).as_bytes().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let forged = pool.offer(time(0), None, &bytes, |_| true).unwrap_err();
    assert!(matches!(forged, PoolError::Descriptor(_)), "{forged:?}");
    for epoch in [EPOCH - 2, EPOCH + 2] {
        let refused = offer(&mut pool, &signed(&descriptor(1, epoch)));
        assert_eq!(refused, Err(PoolError::Epoch { epoch, now: EPOCH }));
    }
    assert_eq!(pool.descriptors().count(), 0);
}

#[test]
fn a_neighbour_can_offer_so_much_a_minute() {
    let mut pool = Pool::new(clock());
    let signed = signed(&descriptor(1, EPOCH));
    let mut offer = |neighbour, seconds| {
        let from = Some(Neighbour(neighbour));
        pool.offer(time(seconds), from, signed.as_bytes(), |_| false).map(|it| it.is_some())
    };
    assert_eq!(offer(1, 0), Ok(true));
    for _ in 1..512 {
        assert_eq!(offer(1, 0), Ok(false));
    }
    assert_eq!(offer(1, 0), Err(PoolError::TooMany { most: 512 }));
    assert_eq!(offer(2, 0), Ok(false), "another one is not held to account");
    assert_eq!(offer(1, 60), Ok(false), "a minute later");
}

#[test]
fn what_has_no_keys_any_more_is_forgotten() {
    let mut pool = Pool::new(clock());
    offer(&mut pool, &signed(&descriptor(1, EPOCH))).unwrap();
    pool.forget_old(time(29));
    assert_eq!(pool.descriptors().count(), 1);
    pool.forget_old(time(30));
    assert_eq!(pool.descriptors().count(), 0);
}

fn offer(pool: &mut Pool, signed: &SignedDescriptor) -> Result<bool, PoolError> {
    pool.offer(time(0), None, signed.as_bytes(), |_| true).map(|it| it.is_some())
}
