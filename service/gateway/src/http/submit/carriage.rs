//! Whether a message can ever leave, and if not, what would have to be otherwise.

use fieldpost_envelope::GatewayId;

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

/// Whether some transport may carry it some day to `place`, a gateway or a phone; the router finds out
/// when.
///
/// # Errors
///
/// 422 with what those that the message may use lack.
pub(super) fn check(gateway: &Gateway, draft: &Draft, place: Place) -> Result<(), ApiError> {
    let required = draft.wishes.required.as_deref();
    let refusal = |why: String| Err(ApiError::invalid("body.to", format!("to: {why}")));
    if required.is_some_and(|name| !gateway.mixnet.allows(name))
        && let Some(reason) = gateway.mixnet.reason()
    {
        return refusal(format!("the mixnet does not run: {reason}"));
    }
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
    let bytes = draft.content.bytes.len();
    match why_not(ways, bytes, draft.min_anonymity.get(), place, required.is_some()) {
        Some(why) => refusal(why),
        None => Ok(()),
    }
}

/// Where a message goes that leaves this gateway.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Gateway(GatewayId),
    Phone,
}

/// Why none of `ways` can ever carry so much at that level; `None` if one can.
fn why_not(
    mut ways: Vec<Way>,
    bytes: usize,
    level: u8,
    place: Place,
    is_required: bool,
) -> Option<String> {
    let to = match place {
        Place::Gateway(id) => format!("gateway {id}"),
        Place::Phone => "a phone".to_owned(),
    };
    let remedy = |transports: &str| match is_required {
        true => "leave transport_required out".to_owned(),
        false => format!("start this gateway with {transports} in --transports"),
    };
    if ways.is_empty() {
        let remedy = remedy("one");
        return Some(format!("no transport that the message may use leads to {to}: {remedy}"));
    }
    let all = names(&ways);
    ways.retain(|way| matches!(place, Place::Gateway(_)) || way.reaches_phones);
    if ways.is_empty() {
        return Some(format!("{all} cannot reach {to}: {}", remedy("ble")));
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
    use super::*;

    #[test]
    fn what_one_of_them_can_carry_is_not_refused() {
        for (bytes, level, place) in [(1000, 0, there()), (100, 1, there()), (100, 0, Place::Phone)]
        {
            assert_eq!(why_not(vec![ble(), mesh()], bytes, level, place, false), None);
        }
    }

    #[test]
    fn a_refusal_says_what_would_have_to_be_otherwise() {
        for (ways, bytes, level, place, is_required, expected) in [
            (vec![], 1, 0, there(), false, "with one in --transports"),
            (vec![], 1, 0, there(), true, "leave transport_required out"),
            (vec![mesh()], 1, 0, Place::Phone, false, "with ble in --transports"),
            (vec![mesh()], 1, 0, Place::Phone, true, "leave transport_required out"),
            (vec![ble(), mesh()], 1, 3, there(), false, "ble and mesh can never give more than 1"),
            // Only one of them is good enough, and that takes less.
            (vec![ble(), mesh()], 101, 1, there(), false, "ble can never carry more than 100 B"),
            (vec![ble(), mesh()], 1001, 0, there(), false, "mesh can never carry more than 1000 B"),
        ] {
            let why = why_not(ways, bytes, level, place, is_required).unwrap_or_default();
            assert!(why.contains(expected), "{why}");
        }
    }

    fn ble() -> Way {
        Way { name: "ble", reaches_phones: true, level: 1, max_bytes: 100 }
    }

    fn mesh() -> Way {
        Way { name: "mesh", reaches_phones: false, level: 0, max_bytes: 1000 }
    }

    fn there() -> Place {
        Place::Gateway(GatewayId::from_bytes([7; 32]))
    }
}
