//! Whether a message can ever leave, and if not, what would have to be otherwise.

use fieldpost_envelope::PeerAddress;

use crate::{
    Gateway,
    http::{error::ApiError, submit::Draft},
};

/// What one transport can do at best.
struct Way {
    name: &'static str,
    reaches_phones: bool,
    level: u8,
    max_bytes: usize,
}

/// Whether some transport may carry it some day; the router finds out when.
///
/// # Errors
///
/// 422 with what those that the message may use lack.
pub(super) fn check(gateway: &Gateway, draft: &Draft, to: &PeerAddress) -> Result<(), ApiError> {
    let required = draft.wishes.required.as_deref();
    let may_use = |name: &str| {
        required.is_none_or(|required| required == name) && gateway.mixnet.allows(name)
    };
    let transports = gateway.transports.iter().filter(|transport| may_use(transport.name()));
    let ways: Vec<Way> = transports
        .map(|transport| (transport.name(), transport.capabilities()))
        .filter(|(_, can)| can.supports_unicast)
        .map(|(name, can)| Way {
            name,
            reaches_phones: can.reaches_phones,
            level: can.best_anonymity_level.max(can.anonymity_level),
            max_bytes: can.max_message_size,
        })
        .collect();
    why_not(ways, draft.content.bytes.len(), draft.min_anonymity.get(), to)
        .map_or(Ok(()), |why| Err(ApiError::invalid("body.to", format!("to: {why}"))))
}

/// Why none of `ways` can ever carry so much at that level; `None` if one can.
fn why_not(mut ways: Vec<Way>, bytes: usize, level: u8, to: &PeerAddress) -> Option<String> {
    if ways.is_empty() {
        return Some(format!(
            "no transport that the message may use leads to {to}: start the gateway with one in \
             --transports"
        ));
    }
    let all = names(&ways);
    ways.retain(|way| to.gateway.is_some() || way.reaches_phones);
    if ways.is_empty() {
        return Some(format!(
            "{all} cannot reach the phone {to}: start the gateway with ble in --transports"
        ));
    }
    let (all, most) = (names(&ways), ways.iter().map(|way| way.level).max());
    ways.retain(|way| way.level >= level);
    if ways.is_empty() {
        let most = most.unwrap_or_default();
        return Some(format!(
            "level {level} is asked for, and {all} can never give more than {most} on the way to {to}"
        ));
    }
    let most = ways.iter().map(|way| way.max_bytes).max().unwrap_or_default();
    (most < bytes).then(|| {
        let all = names(&ways);
        format!("the content has {bytes} B, and {all} can never carry more than {most} B to {to}")
    })
}

fn names(ways: &[Way]) -> String {
    ways.iter().map(|way| way.name).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use fieldpost_envelope::GatewayId;

    use super::*;

    #[test]
    fn what_one_of_them_can_carry_is_not_refused() {
        for (bytes, level, to) in [(1000, 0, elsewhere()), (100, 1, elsewhere()), (100, 0, phone())]
        {
            assert_eq!(why_not(vec![ble(), mesh()], bytes, level, &to), None);
        }
    }

    #[test]
    fn a_refusal_says_what_would_have_to_be_otherwise() {
        for (ways, bytes, level, to, expected) in [
            (vec![], 1, 0, elsewhere(), "with one in --transports"),
            (vec![mesh()], 1, 0, phone(), "with ble in --transports"),
            (vec![ble(), mesh()], 1, 3, elsewhere(), "ble and mesh can never give more than 1"),
            // Only one of them is good enough, and that takes less.
            (vec![ble(), mesh()], 101, 1, elsewhere(), "ble can never carry more than 100 B"),
            (vec![ble(), mesh()], 1001, 0, elsewhere(), "mesh can never carry more than 1000 B"),
        ] {
            let why = why_not(ways, bytes, level, &to).unwrap_or_default();
            assert!(why.contains(expected), "{why}");
        }
    }

    fn ble() -> Way {
        Way { name: "ble", reaches_phones: true, level: 1, max_bytes: 100 }
    }

    fn mesh() -> Way {
        Way { name: "mesh", reaches_phones: false, level: 0, max_bytes: 1000 }
    }

    fn elsewhere() -> PeerAddress {
        PeerAddress::remote("bob".parse().unwrap(), GatewayId::from_bytes([7; 32]))
    }

    fn phone() -> PeerAddress {
        PeerAddress::local("0123456789abcdef".parse().unwrap())
    }
}
