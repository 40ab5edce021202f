//! What a receipt from the recipient's gateway does to a delivery (design, section 5).

use fieldpost_envelope::{MessageStatus, ReceiptKind};

use crate::{Correspondent, ReceiptIn, Target, state};

/// Where a delivery stands when a receipt comes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Standing {
    /// Its status.
    pub status: MessageStatus,
    /// Whether the recipient's gateway has said that it holds the message.
    pub stored: bool,
}

/// What a receipt changes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// The recipient's gateway has it: retries and failover end, the delivery is `sent` until the
    /// recipient's client confirms.
    Stored,
    /// It ends as this, for this reason where it failed.
    Ends {
        /// `delivered`, `read` or `failed`.
        status: MessageStatus,
        /// Why, where it failed.
        reason: Option<String>,
    },
}

/// Whose word counts for a delivery; nobody's for a broadcast over a transport.
///
/// A phone signs nothing that a gateway could check later; its transport reports for it.
pub fn signer_of(target: &Target) -> Option<Correspondent> {
    match target {
        Target::Remote(address) => match address.gateway {
            Some(gateway) => Some(gateway.into()),
            None => Correspondent::phone(&address.peer),
        },
        Target::Group { home, .. } => Some((*home).into()),
        Target::Local(_) | Target::Broadcast(_) => None,
    }
}

/// What `receipt` does to a delivery to `target` that stands at `standing`; `None` when nothing.
///
/// Receipts may come late, twice and in any order. The signature itself has been checked by whoever
/// decoded the receipt; here it is checked that the signer may speak for the recipient.
pub fn effect(standing: Standing, target: &Target, receipt: &ReceiptIn) -> Option<Effect> {
    if signer_of(target) != Some(receipt.signer) {
        return None;
    }
    let arrived = |status| {
        state::may_follow(standing.status, status).then_some(Effect::Ends { status, reason: None })
    };
    match receipt.kind {
        ReceiptKind::Stored => {
            (!standing.status.is_final() && !standing.stored).then_some(Effect::Stored)
        }
        ReceiptKind::Delivered => arrived(MessageStatus::Delivered),
        ReceiptKind::Read => arrived(MessageStatus::Read),
        ReceiptKind::Refused => {
            // After `stored` a refusal can only be of another copy: the message itself is safe there. A
            // group's home may keep one until it knows whether its sender becomes a member.
            let is_safe = standing.stored && !matches!(target, Target::Group { .. });
            (!standing.status.is_final() && !is_safe).then(|| {
                let reason = receipt.reason.clone().unwrap_or_else(|| NO_REASON.into());
                Effect::Ends { status: MessageStatus::Failed, reason: Some(reason) }
            })
        }
    }
}

const NO_REASON: &str = "the recipient's gateway refused the message and gave no reason";

#[cfg(test)]
mod tests {
    use MessageStatus::*;

    use fieldpost_envelope::GatewayId;

    use super::*;
    use crate::Time;

    #[test]
    fn stored_ends_the_retries_but_not_the_delivery() {
        for status in [Pending, Sent] {
            let standing = Standing { status, stored: false };
            assert_eq!(
                effect(standing, &bob(), &receipt(ReceiptKind::Stored)),
                Some(Effect::Stored)
            );
            let standing = Standing { status, stored: true };
            assert_eq!(effect(standing, &bob(), &receipt(ReceiptKind::Stored)), None);
        }
    }

    #[test]
    fn delivered_and_read_correct_what_was_given_up_but_never_what_was_cancelled() {
        for (kind, reached) in [(ReceiptKind::Delivered, Delivered), (ReceiptKind::Read, Read)] {
            for status in [Pending, Sent, Expired, Failed] {
                let standing = Standing { status, stored: false };
                let ends = Effect::Ends { status: reached, reason: None };
                assert_eq!(effect(standing, &bob(), &receipt(kind)), Some(ends), "{status}");
            }
            let standing = Standing { status: Cancelled, stored: false };
            assert_eq!(effect(standing, &bob(), &receipt(kind)), None);
        }
        let read = Standing { status: Read, stored: true };
        assert_eq!(effect(read, &bob(), &receipt(ReceiptKind::Delivered)), None);
    }

    #[test]
    fn a_refusal_fails_the_delivery_with_its_reason() {
        let standing = Standing { status: Sent, stored: false };
        let refused =
            ReceiptIn { reason: Some("inbox full".into()), ..receipt(ReceiptKind::Refused) };
        let ends = Effect::Ends { status: Failed, reason: Some("inbox full".into()) };
        assert_eq!(effect(standing, &bob(), &refused), Some(ends));
        let safe = Standing { status: Sent, stored: true };
        assert_eq!(effect(safe, &bob(), &refused), None);
        let Some(Effect::Ends { reason, .. }) =
            effect(standing, &bob(), &receipt(ReceiptKind::Refused))
        else {
            panic!("a refusal without a reason is a refusal");
        };
        assert_eq!(reason.as_deref(), Some(NO_REASON));
    }

    #[test]
    fn only_the_recipients_gateway_is_believed() {
        for &status in MessageStatus::ALL {
            for &kind in ReceiptKind::ALL {
                let standing = Standing { status, stored: false };
                let forged =
                    ReceiptIn { signer: GatewayId::from_bytes([8; 32]).into(), ..receipt(kind) };
                assert_eq!(effect(standing, &bob(), &forged), None);
                for target in [
                    Target::Local("bob".parse().unwrap()),
                    Target::Broadcast("ble".into()),
                    Target::Remote("a1b2c3d4e5f60718".parse().unwrap()),
                ] {
                    assert_eq!(effect(standing, &target, &receipt(kind)), None);
                }
            }
        }
    }

    #[test]
    fn a_phone_speaks_for_itself_alone() {
        let phone = Target::Remote("a1b2c3d4e5f60718".parse().unwrap());
        let standing = Standing { status: Sent, stored: false };
        let of = |id| ReceiptIn { signer: Correspondent::Phone(id), ..receipt(ReceiptKind::Read) };
        let ends = Effect::Ends { status: Read, reason: None };
        let its_own = of([0xa1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 0x07, 0x18]);
        assert_eq!(effect(standing, &phone, &its_own), Some(ends));
        assert_eq!(effect(standing, &phone, &of([1; 8])), None);
        assert_eq!(effect(standing, &bob(), &its_own), None);
    }

    #[test]
    fn the_home_of_a_group_speaks_for_the_group_and_no_other_gateway_does() {
        let group = Target::Group { id: "hikers".parse().unwrap(), home: there() };
        let standing = Standing { status: Sent, stored: false };
        let ends = Effect::Ends { status: Delivered, reason: None };
        let said = receipt(ReceiptKind::Delivered);
        assert_eq!(effect(standing, &group, &said), Some(ends));
        let forged = ReceiptIn { signer: GatewayId::from_bytes([8; 32]).into(), ..said };
        assert_eq!(effect(standing, &group, &forged), None);
        let kept = Standing { status: Sent, stored: true };
        let refused = ReceiptIn { reason: Some("no".into()), ..receipt(ReceiptKind::Refused) };
        let ends = Effect::Ends { status: Failed, reason: Some("no".into()) };
        assert_eq!(effect(kept, &group, &refused), Some(ends), "kept for one who did not join");
    }

    #[test]
    fn every_effect_is_a_step_of_the_table() {
        for &status in MessageStatus::ALL {
            for &kind in ReceiptKind::ALL {
                for stored in [false, true] {
                    let found = effect(Standing { status, stored }, &bob(), &receipt(kind));
                    if let Some(Effect::Ends { status: to, .. }) = found {
                        assert!(state::may_follow(status, to), "{status} to {to} by {kind}");
                    }
                }
            }
        }
    }

    fn there() -> GatewayId {
        GatewayId::from_bytes([7; 32])
    }

    fn bob() -> Target {
        Target::Remote(fieldpost_envelope::PeerAddress::remote("bob".parse().unwrap(), there()))
    }

    fn receipt(kind: ReceiptKind) -> ReceiptIn {
        let at = Time::UNIX_EPOCH;
        ReceiptIn { envelope: [1; 32], signer: there().into(), kind, at, reason: None }
    }
}
