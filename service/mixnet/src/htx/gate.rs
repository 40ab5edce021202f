//! Who is let in, and who sees the decoy site (HTX reference, section 1.2).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use fieldpost_envelope::Timestamp;
use rand::CryptoRng;
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    buckets::{BucketLimits, Buckets},
    curve::{PublicKey, SecretKey},
    ticket::{self, TicketError, TicketId, TicketParts},
};

/// A front's judgement of tickets.
///
/// Every request costs the same work, whether it shows a good ticket, a bad one or none: one X25519
/// and three proofs. So the time of the answer does not tell what the gate thought, and whoever is
/// refused, for whatever reason, sees the decoy.
///
/// | What is kept | At most | At the limit |
/// |---|---|---|
/// | keys | 4 | the oldest is forgotten |
/// | tickets of an hour that were used | 65 536 for each of three hours | further tickets of that hour are refused |
/// | corners of the network with a bucket | [`BucketLimits::corners`] | strangers share one |
pub struct Gate {
    keys: Vec<(TicketId, SecretKey)>,
    /// Stands in where a ticket names no key of ours.
    nobody: SecretKey,
    used: UsedTickets,
    buckets: Buckets,
}

/// A ticket was good.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Admission {
    /// The key that it was made for; it goes into the handshake.
    pub key_id: TicketId,
}

impl Gate {
    /// The most keys at once: a new one is published while tickets for the old ones still come.
    pub const MOST_KEYS: usize = 4;

    /// A gate without keys: nobody is let in.
    pub fn new(rng: &mut impl CryptoRng, limits: BucketLimits) -> Self {
        Self {
            keys: Vec::new(),
            nobody: SecretKey::generate(rng),
            used: UsedTickets::default(),
            buckets: Buckets::new(limits),
        }
    }

    /// Takes tickets for this key, too.
    pub fn add_key(&mut self, id: TicketId, key: SecretKey) {
        self.remove_key(&id);
        if self.keys.len() == Self::MOST_KEYS {
            self.keys.remove(0);
        }
        self.keys.push((id, key));
    }

    /// Takes tickets for this key no more.
    pub fn remove_key(&mut self, id: &TicketId) {
        self.keys.retain(|(other, _)| other != id);
    }

    /// Judges what a request shows. A good ticket is good once.
    ///
    /// `now` is our clock; the client's may be an hour away from it.
    ///
    /// # Errors
    ///
    /// The answer is the decoy. The reason is for counting; it must not show in the answer.
    pub fn check(
        &mut self,
        now: Timestamp,
        address: IpAddr,
        presented: Option<&str>,
    ) -> Result<Admission, Refusal> {
        let hour = ticket::hour(now.as_millis() / 1_000);
        let ticket = presented.map(TicketParts::decode);
        let parts = ticket.as_ref().and_then(|ticket| ticket.as_ref().ok().copied());
        let proven = self.prove(hour, &parts.unwrap_or(NO_TICKET));
        let has_token = presented.is_some() && self.buckets.take(now.as_millis(), address);
        let parts = ticket.ok_or(Refusal::NoTicket)?.map_err(Refusal::Malformed)?;
        if !has_token {
            return Err(Refusal::TooMany);
        }
        let hour = proven?;
        self.used.insert(hour, parts.client)?;
        Ok(Admission { key_id: parts.key_id })
    }

    /// Finds the hour that the ticket proves; the same work for each ticket.
    fn prove(&self, now_hour: u64, ticket: &TicketParts) -> Result<u64, Refusal> {
        let known = self.keys.iter().find(|(id, _)| *id == ticket.key_id);
        let key = known.map_or(&self.nobody, |(_, key)| key);
        let shared = key.agree(&ticket.client);
        let agreed = shared.is_some() && known.is_some();
        let shared = shared.unwrap_or(Zeroizing::new([0; 32]));
        let mut hour = None;
        for candidate in [now_hour.saturating_sub(1), now_hour, now_hour + 1] {
            let proof = ticket::proof(&shared, &ticket.key_id, candidate, &ticket.nonce);
            let matches = proof.as_ref().ct_eq(&ticket.proof) & Choice::from(u8::from(agreed));
            if matches.into() {
                hour = Some(candidate);
            }
        }
        match (known, hour) {
            (None, _) => Err(Refusal::UnknownKey),
            (Some(_), None) => Err(Refusal::Forged),
            (Some(_), Some(hour)) => Ok(hour),
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// Why somebody sees the decoy.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Refusal {
    /// The request shows no ticket.
    #[error("no ticket")]
    NoTicket,
    /// What it shows is none.
    #[error("not a ticket")]
    Malformed(#[source] TicketError),
    /// It is made for a key that is not ours.
    #[error("the ticket is for another key")]
    UnknownKey,
    /// Its proof is of no hour near ours.
    #[error("the ticket proves nothing for this hour or the ones beside it")]
    Forged,
    /// It was used before.
    #[error("the ticket was used before")]
    Replayed,
    /// As many tickets were used in its hour as can be remembered.
    #[error("{most} tickets were used in this hour", most = UsedTickets::MOST)]
    Full,
    /// Too many tickets come from there.
    #[error("too many tickets from this network")]
    TooMany,
}

/// The clients' keys of good tickets, for as long as their hour is taken.
#[derive(Default)]
struct UsedTickets {
    hours: BTreeMap<u64, BTreeSet<PublicKey>>,
    /// The oldest hour of which all is still remembered.
    oldest: u64,
}

impl UsedTickets {
    const MOST: usize = 1 << 16;

    fn insert(&mut self, hour: u64, client: PublicKey) -> Result<(), Refusal> {
        // Tickets of an hour come within two hours of each other. If the clock is set back, what was
        // forgotten stays refused.
        self.oldest = self.oldest.max(hour.saturating_sub(2));
        self.hours = self.hours.split_off(&self.oldest);
        if hour < self.oldest {
            return Err(Refusal::Replayed);
        }
        let used = self.hours.entry(hour).or_default();
        if used.contains(&client) {
            return Err(Refusal::Replayed);
        }
        if used.len() >= Self::MOST {
            return Err(Refusal::Full);
        }
        used.insert(client);
        Ok(())
    }
}

/// What a request without a ticket is put to the test with.
const NO_TICKET: TicketParts =
    TicketParts { client: [9; 32], key_id: [0; 8], nonce: [0; 32], proof: [0; 32] };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_that_is_full_takes_no_more_and_three_hours_are_kept() {
        let mut used = UsedTickets::default();
        let client = |number: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            key
        };
        for number in 0..UsedTickets::MOST {
            assert_eq!(used.insert(10, client(number)), Ok(()));
        }
        assert_eq!(used.insert(10, client(UsedTickets::MOST)), Err(Refusal::Full));
        assert_eq!(used.insert(10, client(7)), Err(Refusal::Replayed));
        for hour in 11..20 {
            assert_eq!(used.insert(hour, client(7)), Ok(()));
            assert!(used.hours.len() <= 3);
        }
        assert_eq!(used.insert(10, client(UsedTickets::MOST)), Err(Refusal::Replayed));
    }
}
