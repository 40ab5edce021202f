//! Who may act: tokens, tickets, invites, renewal (design, sections 4 and 12).
//!
//! A secret is 256 random bits behind a prefix that tells what it is for. The database has its
//! SHA-256 alone; with that much entropy a slow hash would protect nothing more.

use std::{
    collections::HashMap,
    io,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use data_encoding::BASE64URL_NOPAD;
use fieldpost_envelope::PeerId;
use rand::{TryRng, rngs::SysRng};
use sha2::{Digest, Sha256};

use super::Store;

/// Whom a token belongs to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TokenHolder {
    /// A peer of this gateway.
    Peer(PeerId),
    /// An operator.
    Operator,
}

/// How a renewal went.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Renewed {
    /// The old token has ended; this is the new one.
    Token(String),
    /// The nonce was used before.
    NonceUsed,
    /// The peer's key was replaced, or the peer does not exist.
    KeyChanged,
}

/// How long a ticket opens a socket.
pub const TICKET_LIFETIME: Duration = Duration::from_secs(30);
/// How long a renewal nonce can be signed and brought back.
pub const NONCE_LIFETIME: Duration = Duration::from_secs(60);
/// Tickets that one peer can have open at once.
pub const MAX_TICKETS: i64 = 64;
/// Invites that can be open at once.
pub const MAX_INVITES: i64 = 10_000;

impl Store {
    /// Whom `token` belongs to, if to anybody.
    ///
    /// Answers come from memory for up to 2 s, so a token that another replica has ended works
    /// here for that long.
    pub async fn token_holder(&self, token: &str) -> sqlx::Result<Option<TokenHolder>> {
        let Some(hash) = secret_hash(token, &[Kind::Peer, Kind::Operator]) else {
            return Ok(None);
        };
        if let Some(holder) = self.tokens.get(&hash, self.clock.instant()) {
            return Ok(Some(holder));
        }
        let generation = self.tokens.generation();
        let found = sqlx::query_scalar!(
            r#"
            select id as "peer?" from peer where token_hash = $1
            union all
            select null from operator_token where hash = $1
            limit 1
            "#,
            &hash,
        )
        .fetch_optional(&self.pool)
        .await?;
        let holder = match found {
            None => return Ok(None),
            Some(None) => TokenHolder::Operator,
            Some(Some(peer)) => TokenHolder::Peer(peer_id(peer)?),
        };
        self.tokens.insert(hash, &holder, self.clock.instant(), generation);
        Ok(Some(holder))
    }

    /// Whether [`token_holder`](Self::token_holder) would answer without the database.
    pub fn remembers_token(&self, token: &str) -> bool {
        secret_hash(token, &[Kind::Peer, Kind::Operator])
            .is_none_or(|hash| self.tokens.get(&hash, self.clock.instant()).is_some())
    }

    /// Opens one ticket for a socket of `peer`; `None` when it has too many open.
    pub async fn create_ticket(
        &self,
        peer: &PeerId,
    ) -> sqlx::Result<Option<(String, DateTime<Utc>)>> {
        let (ticket, hash) = new_secret(Kind::Ticket)?;
        let now = self.clock.now();
        let expires_at = now + TICKET_LIFETIME;
        let created = sqlx::query!(
            r#"
            insert into ticket (hash, peer, expires_at)
            select $1, $2, $3
            where (select count(*) from ticket where peer = $2 and expires_at > $4) < $5
            "#,
            &hash,
            peer.as_str(),
            expires_at,
            now,
            MAX_TICKETS,
        )
        .execute(&self.pool)
        .await?;
        Ok((created.rows_affected() == 1).then_some((ticket, expires_at)))
    }

    /// Takes in a ticket: whose it is, once.
    pub async fn redeem_ticket(&self, ticket: &str) -> sqlx::Result<Option<PeerId>> {
        let Some(hash) = secret_hash(ticket, &[Kind::Ticket]) else {
            return Ok(None);
        };
        sqlx::query_scalar!(
            r#"with used as (delete from ticket where hash = $1 returning peer, expires_at)
            select peer from used where expires_at > $2"#,
            &hash,
            self.clock.now(),
        )
        .fetch_optional(&self.pool)
        .await?
        .map(peer_id)
        .transpose()
    }

    /// Makes an invite for `uses` registrations; `None` when too many are open.
    pub async fn create_invite(
        &self,
        note: Option<&str>,
        uses: i32,
        expires_at: DateTime<Utc>,
    ) -> sqlx::Result<Option<String>> {
        let (invite, hash) = new_secret(Kind::Invite)?;
        let created = sqlx::query!(
            r#"
            insert into invite (hash, note, uses_left, created_at, expires_at)
            select $1, $2, $3, $4, $5
            where (select count(*) from invite where expires_at > $4 and uses_left > 0) < $6
            "#,
            &hash,
            note,
            uses,
            self.clock.now(),
            expires_at,
            MAX_INVITES,
        )
        .execute(&self.pool)
        .await?;
        Ok((created.rows_affected() == 1).then_some(invite))
    }

    /// Makes an operator's token.
    pub async fn create_operator_token(&self, note: Option<&str>) -> sqlx::Result<String> {
        let (token, hash) = new_secret(Kind::Operator)?;
        sqlx::query!(
            "insert into operator_token (hash, note, created_at) values ($1, $2, $3)",
            &hash,
            note,
            self.clock.now(),
        )
        .execute(&self.pool)
        .await?;
        Ok(token)
    }

    /// A nonce for one renewal by `peer`.
    ///
    /// It is kept nowhere: the master key seals its end of life for this peer, so nobody can use
    /// up a stranger's nonces by asking for more. Only a used one is written down.
    pub fn renewal_nonce(&self, peer: &PeerId) -> sqlx::Result<(String, DateTime<Utc>)> {
        let expires_at = self.clock.now() + NONCE_LIFETIME;
        let sealed = self
            .master_key
            .seal(
                NONCE_PURPOSE,
                peer.as_str().as_bytes(),
                &expires_at.timestamp_micros().to_be_bytes(),
            )
            .map_err(|error| sqlx::Error::Io(io::Error::other(error)))?;
        Ok((BASE64URL_NOPAD.encode(&sealed), expires_at))
    }

    /// When a nonce made for `peer` ends; `None` if it is not one, or has ended.
    pub fn check_renewal_nonce(&self, peer: &PeerId, nonce: &str) -> Option<DateTime<Utc>> {
        let sealed = BASE64URL_NOPAD.decode(nonce.as_bytes()).ok()?;
        let opened = self.master_key.open(NONCE_PURPOSE, peer.as_str().as_bytes(), &sealed).ok()?;
        let micros = i64::from_be_bytes(opened.as_slice().try_into().ok()?);
        DateTime::from_timestamp_micros(micros).filter(|end| *end > self.clock.now())
    }

    /// Ends the token and the tickets of `peer` and makes a new token, once for each nonce.
    ///
    /// `public_key` is the key that the signature was checked with: if the peer has another by
    /// now, nothing happens.
    pub async fn renew_token(
        &self,
        peer: &PeerId,
        public_key: &str,
        nonce: &str,
        nonce_ends: DateTime<Utc>,
    ) -> sqlx::Result<Renewed> {
        let (token, hash) = new_secret(Kind::Peer)?;
        let nonce_hash: Hash = Sha256::digest(nonce).into();
        let mut transaction = self.pool.begin().await?;
        let old = sqlx::query_scalar!(
            "select token_hash from peer where id = $1 and public_key = $2 for update",
            peer.as_str(),
            public_key,
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(old) = old else {
            return Ok(Renewed::KeyChanged);
        };
        let used = sqlx::query!(
            r#"insert into renewal_nonce (hash, peer, expires_at) values ($1, $2, $3)
            on conflict do nothing"#,
            &nonce_hash,
            peer.as_str(),
            // A replica whose clock is a little behind must still find it.
            nonce_ends + TimeDelta::minutes(5),
        )
        .execute(&mut *transaction)
        .await?;
        if used.rows_affected() == 0 {
            return Ok(Renewed::NonceUsed);
        }
        sqlx::query!(
            r#"
            with closed as (delete from ticket where peer = $1)
            update peer set token_hash = $2 where id = $1
            "#,
            peer.as_str(),
            &hash,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        self.tokens.remove(&old);
        Ok(Renewed::Token(token))
    }

    /// Removes tickets, used nonces and invites that have ended.
    pub async fn sweep_access(&self) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            with tickets as (delete from ticket where expires_at <= $1),
                nonces as (delete from renewal_nonce where expires_at <= $1)
            delete from invite where expires_at <= $1 or uses_left = 0
            "#,
            self.clock.now(),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

const NONCE_PURPOSE: &str = "renewal nonce";

/// What a secret is for; its prefix tells, to people and to scanners for leaked secrets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Peer,
    Operator,
    Ticket,
    Invite,
}

impl Kind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Peer => "fp_",
            Self::Operator => "fpo_",
            Self::Ticket => "fpt_",
            Self::Invite => "fpi_",
        }
    }
}

pub(super) type Hash = [u8; 32];

/// A new secret and what is kept of it.
pub(super) fn new_secret(kind: Kind) -> sqlx::Result<(String, Hash)> {
    let mut bits = [0; 32];
    SysRng.try_fill_bytes(&mut bits).map_err(|error| sqlx::Error::Io(io::Error::other(error)))?;
    let secret = format!("{}{}", kind.prefix(), BASE64URL_NOPAD.encode(&bits));
    let hash = Sha256::digest(&secret).into();
    Ok((secret, hash))
}

/// What is kept of a secret, unless it is plainly none of ours.
pub(super) fn secret_hash(secret: &str, kinds: &[Kind]) -> Option<Hash> {
    let is_ours = kinds.iter().any(|kind| {
        secret.strip_prefix(kind.prefix()).is_some_and(|rest| rest.len() == SECRET_DIGITS)
    });
    is_ours.then(|| Sha256::digest(secret).into())
}

/// 256 bits in base64.
const SECRET_DIGITS: usize = 43;

pub(super) fn peer_id(text: String) -> sqlx::Result<PeerId> {
    text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// Tokens seen lately; at most [`Tokens::CAPACITY`], each for at most [`Tokens::LIFETIME`].
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    holders: HashMap<Hash, (TokenHolder, Instant)>,
    /// Counts removals: an answer of the database from before one must not be remembered after it.
    generation: u64,
}

impl Tokens {
    const CAPACITY: usize = 65_536;
    const LIFETIME: Duration = Duration::from_secs(2);

    fn get(&self, hash: &Hash, now: Instant) -> Option<TokenHolder> {
        let remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (holder, since) = remembered.holders.get(hash)?;
        (now.saturating_duration_since(*since) < Self::LIFETIME).then(|| holder.clone())
    }

    fn generation(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).generation
    }

    fn insert(&self, hash: Hash, holder: &TokenHolder, now: Instant, generation: u64) {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.generation != generation {
            return;
        }
        if remembered.holders.len() >= Self::CAPACITY {
            remembered
                .holders
                .retain(|_, (_, since)| now.saturating_duration_since(*since) < Self::LIFETIME);
            if remembered.holders.len() >= Self::CAPACITY {
                // Starting over costs each holder one query; looking for room at every insertion
                // would cost more.
                remembered.holders.clear();
            }
        }
        remembered.holders.insert(hash, (holder.clone(), now));
    }

    fn remove(&self, hash: &[u8]) {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.generation += 1;
        remembered.holders.remove(hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_recognised_by_its_prefix_and_length_alone() {
        let (token, hash) = new_secret(Kind::Peer).unwrap();
        assert!(token.starts_with("fp_"));
        assert_eq!(secret_hash(&token, &[Kind::Peer]), Some(hash));
        assert_eq!(secret_hash(&token, &[Kind::Ticket]), None);
        assert_eq!(secret_hash("anything", &[Kind::Peer]), None);
        assert_ne!(token, new_secret(Kind::Peer).unwrap().0);
    }

    #[test]
    fn a_token_is_remembered_for_two_seconds_and_not_past_its_end() {
        let tokens = Tokens::default();
        let start = crate::clock::Clock::default().instant();
        let holder = TokenHolder::Operator;
        tokens.insert([1; 32], &holder, start, tokens.generation());
        assert_eq!(tokens.get(&[1; 32], start + Duration::from_millis(1999)), Some(holder.clone()));
        assert_eq!(tokens.get(&[1; 32], start + Duration::from_secs(2)), None);

        // The database was asked before the removal and answers after it.
        let before = tokens.generation();
        tokens.remove(&[1; 32]);
        tokens.insert([1; 32], &holder, start, before);
        assert_eq!(tokens.get(&[1; 32], start), None);
    }

    #[test]
    fn under_a_flood_of_tokens_memory_stays_bounded() {
        let tokens = Tokens::default();
        let start = crate::clock::Clock::default().instant();
        for number in 0..Tokens::CAPACITY {
            let hash = Sha256::digest(number.to_be_bytes()).into();
            tokens.insert(hash, &TokenHolder::Operator, start, 0);
        }
        assert_eq!(tokens.0.lock().unwrap().holders.len(), Tokens::CAPACITY);
        tokens.insert([1; 32], &TokenHolder::Operator, start, 0);
        assert_eq!(tokens.0.lock().unwrap().holders.len(), 1);
    }
}
