//! This gateway's rosters, as others are told them, and the numbers of theirs.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use fieldpost_envelope::{GatewayId, SignedRoster};

use crate::wire::MAX_ROSTER_COUNT;

/// The newest roster and the last steps that led to it.
#[derive(Debug, Default)]
pub(crate) struct Own {
    newest: Option<(u64, Bytes)>,
    /// Each leads from the number before to its own, the last to the newest.
    deltas: VecDeque<Delta>,
}

#[derive(Debug)]
struct Delta {
    base: u64,
    bytes: Bytes,
}

impl Own {
    pub(crate) fn number(&self) -> u64 {
        self.newest.as_ref().map_or(0, |(number, _)| *number)
    }

    /// Takes the newest roster; an older one than that which is there is ignored.
    pub(crate) fn publish(&mut self, whole: &SignedRoster, delta: Option<&SignedRoster>) -> bool {
        let before = self.number();
        if whole.number() <= before || whole.base().is_some() {
            return false;
        }
        let next = delta.filter(|delta| {
            delta.number() == whole.number() && delta.base() == Some(before) && before > 0
        });
        match next {
            Some(delta) => {
                let bytes = Bytes::copy_from_slice(delta.as_bytes());
                self.deltas.push_back(Delta { base: before, bytes });
                if self.deltas.len() > DELTAS {
                    self.deltas.pop_front();
                }
            }
            // Others go on with the whole.
            None => self.deltas.clear(),
        }
        self.newest = Some((whole.number(), Bytes::copy_from_slice(whole.as_bytes())));
        true
    }

    /// What somebody is told who has roster `have`: nothing, the deltas since, or the whole.
    pub(crate) fn since(&self, have: u64) -> Vec<Bytes> {
        let Some((number, whole)) = &self.newest else { return Vec::new() };
        if have >= *number {
            return Vec::new();
        }
        let steps = self.deltas.iter().skip_while(|delta| delta.base != have);
        let steps: Vec<Bytes> = steps.map(|delta| delta.bytes.clone()).collect();
        let length: usize = steps.iter().map(|step| step.len() + 4).sum();
        if steps.is_empty() || length >= whole.len() { vec![whole.clone()] } else { steps }
    }
}

/// The number of the newest roster that was passed up, of each gateway.
#[derive(Debug, Default)]
pub(crate) struct Others(BTreeMap<GatewayId, u64>);

impl Others {
    pub(crate) fn number(&self, gateway: GatewayId) -> u64 {
        self.0.get(&gateway).copied().unwrap_or(0)
    }

    /// Remembers the number. `is_linked` says which gateways must not be forgotten for it.
    pub(crate) fn set(
        &mut self,
        gateway: GatewayId,
        number: u64,
        is_linked: impl Fn(&GatewayId) -> bool,
    ) {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&gateway) {
            // One that comes back is told the whole again.
            self.0.retain(|gateway, _| is_linked(gateway));
        }
        self.0.insert(gateway, number);
    }

    pub(crate) fn forget(&mut self, gateway: GatewayId) {
        self.0.remove(&gateway);
    }
}

const DELTAS: usize = MAX_ROSTER_COUNT / 2;
const REMEMBERED: usize = 4096;

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use fieldpost_envelope::{Listing, Roster};

    use super::*;

    #[test]
    fn who_is_a_few_behind_is_told_the_steps_and_others_the_whole() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let (mut own, mut last) = (Own::default(), None);
        for number in 1..=40 {
            let whole = roster(&key, number);
            let delta = last.as_ref().map(|last| whole.delta_from(last).sign(&key).unwrap());
            assert!(own.publish(&whole.sign(&key).unwrap(), delta.as_ref()));
            last = Some(whole);
        }
        let bases = |have| {
            let decode = |bytes: &Bytes| SignedRoster::decode(bytes).unwrap().base();
            own.since(have).iter().map(decode).collect::<Vec<_>>()
        };
        assert_eq!(bases(40), []);
        assert_eq!(bases(38), [Some(38), Some(39)]);
        assert_eq!(bases(0), [None]);
        assert_eq!(bases(3), [None], "the steps since then are forgotten");
        assert!(!own.publish(&roster(&key, 40).sign(&key).unwrap(), None));
    }

    #[test]
    fn a_step_that_does_not_follow_the_last_is_not_told() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let mut own = Own::default();
        own.publish(&roster(&key, 1).sign(&key).unwrap(), None);
        let delta = roster(&key, 9).delta_from(&roster(&key, 8)).sign(&key).unwrap();
        own.publish(&roster(&key, 9).sign(&key).unwrap(), Some(&delta));
        assert_eq!(SignedRoster::decode(&own.since(1)[0]).unwrap().base(), None);
    }

    fn roster(key: &SigningKey, number: u64) -> Roster {
        let listing = |index| Listing {
            peer: format!("peer-{index}").parse().unwrap(),
            display_name: Some("x".repeat(40)),
        };
        Roster {
            gateway: key.verifying_key().into(),
            number,
            base: None,
            peers: (0..number + 30).map(listing).collect(),
            removed: vec![],
        }
    }
}
