//! How much may wait for one recipient, and how much of it may be one sender's (design, section 6).
//!
//! The numbers live in memory, counted from the queues once and kept up from then on. Another
//! replica's share is seen when they are counted again: before a refusal, and when they are old
//! and no longer small.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use thiserror::Error;

use super::Store;

/// Messages that may wait for one recipient.
pub const MAX_MESSAGES: u64 = 100_000;
/// Bytes that may wait for one recipient.
pub const MAX_BYTES: u64 = 256 * 1024 * 1024;
/// Of these, the part that all senders of one gateway that is not trusted may fill, whatever names
/// they have.
const STRANGER_SHARE: f64 = 0.25;
/// The part up to which other gateways may fill it before those that are not trusted are refused: the
/// rest is for local and trusted senders.
const ELSEWHERE_SHARE: f64 = 0.5;

/// Whose storage is full.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum Full {
    /// All of it.
    #[error(
        "storage for {recipient} is full: at most {MAX_MESSAGES} messages or {MAX_BYTES} bytes \
         wait for one recipient; try again when some were confirmed"
    )]
    Recipient {
        /// Whom the message is for.
        recipient: String,
    },
    /// The part that one sender may fill.
    #[error(
        "you have filled your share of the storage for {recipient}: at most {max_messages} messages \
         or {max_bytes} bytes of one sender wait; try again when some were confirmed"
    )]
    Share {
        /// Whom the message is for.
        recipient: String,
        /// The sender's limit.
        max_messages: u64,
        /// The sender's limit.
        max_bytes: u64,
    },
    /// The part for gateways that are not trusted, or for one of them.
    #[error("the part of the storage for {recipient} that strangers may fill is full")]
    Strangers {
        /// Whom the message is for.
        recipient: String,
    },
}

/// Where a message comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// A peer of this gateway, or of a trusted one.
    Known,
    /// A peer of a gateway that is not trusted.
    Stranger,
}

/// Keeps the numbers; cheap to clone.
#[derive(Clone)]
pub struct Quotas {
    store: Store,
    share: Usage,
    /// What one gateway that is not trusted may fill.
    stranger_share: Usage,
    ledger: Arc<Mutex<Ledger>>,
}

impl Quotas {
    /// Numbers over `store`; one sender may fill `sender_share` (0 to 1) of each limit.
    pub fn new(store: Store, sender_share: f64) -> Self {
        let stranger_share = Usage::part(sender_share.max(STRANGER_SHARE));
        Self { store, share: Usage::part(sender_share), stranger_share, ledger: Arc::default() }
    }

    /// Makes room for one message of `size_bytes` from `sender` at each recipient that has some, and
    /// says which have none.
    ///
    /// Recipients and senders are named as in the queues. What comes to nothing afterwards, and
    /// what ends, is given back by [`release`](Self::release).
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn reserve(
        &self,
        recipients: &[String],
        sender: &str,
        size_bytes: u64,
    ) -> sqlx::Result<Vec<Full>> {
        self.reserve_from(recipients, sender, size_bytes, Origin::Known).await
    }

    async fn reserve_from(
        &self,
        recipients: &[String],
        sender: &str,
        size_bytes: u64,
        origin: Origin,
    ) -> sqlx::Result<Vec<Full>> {
        let now = self.store.clock.instant();
        let doubtful = self.lock().doubtful(recipients, sender, self.share, now);
        if !doubtful.is_empty() {
            self.count(&doubtful).boxed().await?;
        }
        let adding = Usage { messages: 1, bytes: size_bytes };
        let reserve = |recipients: &[String]| {
            let mut ledger = self.lock();
            let find = |recipient: &String| {
                let stranger = match origin {
                    Origin::Stranger => {
                        ledger.check_stranger(recipient, sender, adding, self.stranger_share)
                    }
                    Origin::Known => Ok(()),
                };
                stranger
                    .and_then(|()| ledger.reserve(recipient, sender, adding, self.share, now))
                    .err()
            };
            recipients.iter().filter_map(find).collect::<Vec<Full>>()
        };
        let (mut full, old): (Vec<_>, Vec<_>) = {
            let full = reserve(recipients);
            let ledger = self.lock();
            full.into_iter().partition(|full| {
                ledger.counted_within(full.recipient(), RECOUNT_BEFORE_REFUSAL, now)
            })
        };
        let old: Vec<String> = old.iter().map(|full| full.recipient().to_owned()).collect();
        if !old.is_empty() {
            self.count(&old).boxed().await?;
        }
        full.extend(reserve(&old));
        Ok(full)
    }

    /// As [`reserve`](Self::reserve), for one recipient and a sender from elsewhere.
    ///
    /// # Errors
    ///
    /// The outer one is the database's; the inner one says why there is no room.
    pub async fn check_and_reserve(
        &self,
        recipient: &str,
        sender: &str,
        size_bytes: u64,
        origin: Origin,
    ) -> sqlx::Result<Result<(), Full>> {
        let full = self.reserve_from(&[recipient.to_owned()], sender, size_bytes, origin).await?;
        Ok(full.into_iter().next().map_or(Ok(()), Err))
    }

    /// How many messages wait for `recipient`, as far as was counted.
    pub fn waiting(&self, recipient: &str) -> u64 {
        self.lock().waiting(recipient)
    }

    /// Forgets what waits for `recipients`, as it was moved between them; it is counted at need.
    pub fn recount(&self, recipients: &[String]) {
        self.lock().forget(recipients);
    }

    /// Gives back the room of `messages` messages of together `bytes`; where that is 0, because it is
    /// not known, of as many bytes as this sender's messages have on average.
    pub fn release(&self, recipient: &str, sender: &str, messages: u64, bytes: u64) {
        self.lock().release(recipient, sender, Usage { messages, bytes });
    }

    /// Counts from the queues what waits for `recipients`.
    async fn count(&self, recipients: &[String]) -> sqlx::Result<()> {
        self.lock().begin_count(recipients);
        let counted = self.store.count_waiting(recipients).await;
        let now = self.store.clock.instant();
        match counted {
            Ok(counted) => {
                self.lock().finish_count(recipients, counted, now);
                Ok(())
            }
            Err(error) => {
                self.lock().abandon_count(recipients);
                Err(error)
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Full {
    /// Whose storage it is.
    pub fn recipient(&self) -> &str {
        match self {
            Self::Recipient { recipient }
            | Self::Share { recipient, .. }
            | Self::Strangers { recipient } => recipient,
        }
    }
}

impl Store {
    /// What waits for `recipients`, by recipient and sender.
    async fn count_waiting(&self, recipients: &[String]) -> sqlx::Result<Vec<Waiting>> {
        sqlx::query_as!(
            Waiting,
            r#"
            select
                recipient as "recipient!", sender as "sender!", count(*) as "messages!",
                coalesce(sum(size_bytes), 0)::bigint as "bytes!"
            from (
                select recipient, sender, size_bytes from inbox where recipient = any($1)
                union all
                select recipient, sender, size_bytes from outbox where recipient = any($1)
            ) as waiting
            group by recipient, sender
            "#,
            recipients,
        )
        .fetch_all(&self.pool)
        .await
    }
}

struct Waiting {
    recipient: String,
    sender: String,
    messages: i64,
    bytes: i64,
}

/// A recipient at its limit is counted again this often at most, however often it is written to.
const RECOUNT_BEFORE_REFUSAL: Duration = Duration::from_secs(2);
/// Numbers older than this are counted again if they are no longer small.
const RECOUNT: Duration = Duration::from_secs(30);
/// What is small: this part of the limit.
const SMALL: u64 = 8;
/// Pairs of recipient and sender that are remembered.
const MAX_PAIRS: usize = 262_144;

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Usage {
    messages: u64,
    bytes: u64,
}

impl Usage {
    const LIMIT: Self = Self { messages: MAX_MESSAGES, bytes: MAX_BYTES };

    /// A share of the limit, from 0 to 1.
    fn part(share: f64) -> Self {
        let part = |limit: u64| ((limit as f64 * share) as u64).clamp(1, limit);
        Self { messages: part(MAX_MESSAGES), bytes: part(MAX_BYTES) }
    }

    fn fits(self, adding: Self, limit: Self) -> bool {
        self.messages + adding.messages <= limit.messages
            && self.bytes + adding.bytes <= limit.bytes
    }

    fn is_small(self, limit: Self) -> bool {
        self.messages <= limit.messages / SMALL && self.bytes <= limit.bytes / SMALL
    }

    /// Puts the missing bytes to `removed`; nothing is left where no message is.
    fn estimate(self, removed: Self) -> Self {
        let bytes = match removed.bytes {
            _ if removed.messages >= self.messages => self.bytes,
            0 => self.bytes / self.messages * removed.messages,
            known => known,
        };
        Self { bytes, ..removed }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Added(added) => self.add(added),
            Change::Removed(removed) => self.subtract(removed),
        }
    }

    fn add(&mut self, other: Self) {
        self.messages = self.messages.saturating_add(other.messages);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    fn subtract(&mut self, other: Self) {
        self.messages = self.messages.saturating_sub(other.messages);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

/// What waits for one recipient.
#[derive(Debug, Default)]
struct Account {
    total: Usage,
    senders: HashMap<Box<str>, Usage>,
    /// Of the senders that have one, by gateway; and all of these.
    gateways: HashMap<Box<str>, Usage>,
    elsewhere: Usage,
    /// `None` until it was first counted.
    counted_at: Option<Instant>,
    /// What came and went while it is being counted; the count does not have it.
    meanwhile: Option<Vec<(Box<str>, Change)>>,
    used: u64,
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Added(Usage),
    Removed(Usage),
}

impl Account {
    fn apply(&mut self, sender: &str, change: Change) {
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile.push((sender.into(), change));
        }
        let usage = match self.senders.get_mut(sender) {
            Some(usage) => usage,
            None => self.senders.entry(sender.into()).or_default(),
        };
        let change = match change {
            Change::Added(_) => change,
            Change::Removed(removed) => Change::Removed(usage.estimate(removed)),
        };
        usage.apply(change);
        if usage.messages == 0 {
            self.senders.remove(sender);
        }
        self.total.apply(change);
        if let Some((_, gateway)) = sender.split_once('@') {
            self.elsewhere.apply(change);
            let usage = self.gateways.entry(gateway.into()).or_default();
            usage.apply(change);
            if usage.messages == 0 {
                self.gateways.remove(gateway);
            }
        }
    }

    fn sender(&self, sender: &str) -> Usage {
        self.senders.get(sender).copied().unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Ledger {
    accounts: HashMap<Box<str>, Account>,
    /// Ages the accounts, for forgetting those not used for longest.
    uses: u64,
}

impl Ledger {
    fn waiting(&self, recipient: &str) -> u64 {
        self.accounts.get(recipient).map_or(0, |account| account.total.messages)
    }

    /// Whom to count before answering: those never counted, and those whose old numbers matter.
    fn doubtful(
        &mut self,
        recipients: &[String],
        sender: &str,
        share: Usage,
        now: Instant,
    ) -> Vec<String> {
        let is_doubtful = |recipient: &&String| {
            let Some(account) = self.accounts.get(recipient.as_str()) else {
                return true;
            };
            let Some(counted_at) = account.counted_at else {
                return true;
            };
            now.saturating_duration_since(counted_at) >= RECOUNT
                && !(account.total.is_small(Usage::LIMIT) && account.sender(sender).is_small(share))
        };
        recipients.iter().filter(is_doubtful).cloned().collect()
    }

    fn reserve(
        &mut self,
        recipient: &str,
        sender: &str,
        adding: Usage,
        share: Usage,
        now: Instant,
    ) -> Result<(), Full> {
        if let Some(account) = self.accounts.get(recipient) {
            if !account.total.fits(adding, Usage::LIMIT) {
                return Err(Full::Recipient { recipient: recipient.to_owned() });
            }
            if !account.sender(sender).fits(adding, share) {
                return Err(Full::Share {
                    recipient: recipient.to_owned(),
                    max_messages: share.messages,
                    max_bytes: share.bytes,
                });
            }
        }
        self.uses += 1;
        let account = self.account(recipient);
        // Forgotten since it was counted, by others' demand for memory: nothing is known but
        // that it had room.
        account.counted_at.get_or_insert(now);
        account.apply(sender, Change::Added(adding));
        Ok(())
    }

    /// Whether a message of a gateway that is not trusted would fit into what those may fill.
    fn check_stranger(
        &self,
        recipient: &str,
        sender: &str,
        adding: Usage,
        share: Usage,
    ) -> Result<(), Full> {
        let gateway = sender.split_once('@').map_or("", |(_, gateway)| gateway);
        let elsewhere = Usage::part(ELSEWHERE_SHARE);
        let Some(account) = self.accounts.get(recipient) else { return Ok(()) };
        let own = account.gateways.get(gateway).copied().unwrap_or_default();
        if own.fits(adding, share) && account.elsewhere.fits(adding, elsewhere) {
            Ok(())
        } else {
            Err(Full::Strangers { recipient: recipient.to_owned() })
        }
    }

    /// What is being counted at this moment stays: the count ends it.
    fn forget(&mut self, recipients: &[String]) {
        for recipient in recipients {
            match self.accounts.get_mut(recipient.as_str()) {
                Some(account) if account.meanwhile.is_some() => account.counted_at = None,
                Some(_) => drop(self.accounts.remove(recipient.as_str())),
                None => {}
            }
        }
    }

    fn release(&mut self, recipient: &str, sender: &str, usage: Usage) {
        if let Some(account) = self.accounts.get_mut(recipient) {
            account.apply(sender, Change::Removed(usage));
        }
    }

    fn counted_within(&self, recipient: &str, age: Duration, now: Instant) -> bool {
        self.accounts
            .get(recipient)
            .and_then(|account| account.counted_at)
            .is_some_and(|at| now.saturating_duration_since(at) < age)
    }

    fn begin_count(&mut self, recipients: &[String]) {
        self.forget_old();
        self.uses += 1;
        for recipient in recipients {
            self.account(recipient).meanwhile.get_or_insert_default();
        }
    }

    fn finish_count(&mut self, recipients: &[String], counted: Vec<Waiting>, now: Instant) {
        let counting: HashSet<&str> = recipients
            .iter()
            .map(String::as_str)
            .filter(|recipient| {
                self.accounts.get(*recipient).is_some_and(|account| account.meanwhile.is_some())
            })
            .collect();
        let mut meanwhile = Vec::new();
        for recipient in &counting {
            let account = self.account(recipient);
            meanwhile.push((*recipient, account.meanwhile.take().unwrap_or_default()));
            account.senders.clear();
            account.gateways.clear();
            account.total = Usage::default();
            account.elsewhere = Usage::default();
            account.counted_at = Some(now);
        }
        for waiting in counted {
            if counting.contains(waiting.recipient.as_str()) {
                let usage = Usage {
                    messages: waiting.messages.try_into().unwrap_or(0),
                    bytes: waiting.bytes.try_into().unwrap_or(0),
                };
                self.account(&waiting.recipient).apply(&waiting.sender, Change::Added(usage));
            }
        }
        for (recipient, changes) in meanwhile {
            for (sender, change) in changes {
                self.account(recipient).apply(&sender, change);
            }
        }
    }

    fn abandon_count(&mut self, recipients: &[String]) {
        for recipient in recipients {
            if let Some(account) = self.accounts.get_mut(recipient.as_str()) {
                account.meanwhile = None;
            }
        }
    }

    fn account(&mut self, recipient: &str) -> &mut Account {
        if !self.accounts.contains_key(recipient) {
            self.accounts.insert(recipient.into(), Account::default());
        }
        let account = self.accounts.entry(recipient.into()).or_default();
        account.used = self.uses;
        account
    }

    /// Forgets the half used longest ago when too much is remembered; it is counted again at need.
    fn forget_old(&mut self) {
        let pairs: usize = self.accounts.values().map(|account| 1 + account.senders.len()).sum();
        if pairs < MAX_PAIRS {
            return;
        }
        let mut uses: Vec<u64> = self.accounts.values().map(|account| account.used).collect();
        let half = uses.len() / 2;
        let middle = *uses.select_nth_unstable(half).1;
        self.accounts.retain(|_, account| account.used > middle || account.meanwhile.is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: Usage = Usage { messages: 10, bytes: 1000 };
    const ONE: Usage = Usage { messages: 1, bytes: 10 };

    #[test]
    fn one_sender_fills_its_share_and_no_more() {
        let (mut ledger, now) = counted("bob");
        for _ in 0..10 {
            assert_eq!(ledger.reserve("bob", "mallory", ONE, SHARE, now), Ok(()));
        }
        let full = Full::Share { recipient: "bob".to_owned(), max_messages: 10, max_bytes: 1000 };
        assert_eq!(ledger.reserve("bob", "mallory", ONE, SHARE, now), Err(full));
        assert_eq!(ledger.reserve("bob", "alice", ONE, SHARE, now), Ok(()));
        ledger.release("bob", "mallory", ONE);
        assert_eq!(ledger.reserve("bob", "mallory", ONE, SHARE, now), Ok(()));
    }

    #[test]
    fn a_recipients_storage_is_bounded_in_bytes_over_all_senders() {
        let (mut ledger, now) = counted("bob");
        let half = Usage { messages: 1, bytes: MAX_BYTES / 2 };
        let share = Usage::LIMIT;
        assert_eq!(ledger.reserve("bob", "a", half, share, now), Ok(()));
        assert_eq!(ledger.reserve("bob", "b", half, share, now), Ok(()));
        let full = Full::Recipient { recipient: "bob".to_owned() };
        assert_eq!(ledger.reserve("bob", "c", ONE, share, now), Err(full));
    }

    #[test]
    fn strangers_fill_a_part_alone_and_half_together_and_leave_the_rest() {
        let (mut ledger, now) = counted("bob");
        let quarter = Usage::part(STRANGER_SHARE);
        let share = Usage::LIMIT;
        let mut fill = |sender: &str, messages: u64| {
            let adding = Usage { messages, bytes: 0 };
            ledger.check_stranger("bob", sender, adding, quarter)?;
            ledger.reserve("bob", sender, adding, share, now)
        };
        let full = Err(Full::Strangers { recipient: "bob".to_owned() });
        assert_eq!(fill("m1@first", 20_000), Ok(()));
        assert_eq!(fill("m2@first", 5_000), Ok(()));
        assert_eq!(fill("m3@first", 1), full);
        assert_eq!(fill("m@second", 25_000), Ok(()));
        assert_eq!(fill("m@third", 1), full);
        ledger.release("bob", "m@second", ONE);
        let adding = Usage { messages: 50_001, bytes: 0 };
        assert_eq!(ledger.reserve("bob", "alice", adding, share, now), Ok(()));
        ledger.check_stranger("bob", "m@third", ONE, quarter).unwrap();
        ledger.forget(&names("bob"));
        assert!(!ledger.accounts.contains_key("bob"));
    }

    #[test]
    fn unknown_sizes_are_given_back_on_average_and_leave_nothing_behind() {
        let (mut ledger, now) = counted("bob");
        for bytes in [10, 20, 30] {
            let adding = Usage { messages: 1, bytes };
            ledger.reserve("bob", "alice", adding, SHARE, now).unwrap();
        }
        let unknown = Usage { messages: 1, bytes: 0 };
        ledger.release("bob", "alice", unknown);
        assert_eq!(ledger.accounts["bob"].total, Usage { messages: 2, bytes: 40 });
        ledger.release("bob", "alice", ONE);
        assert_eq!(ledger.accounts["bob"].total, Usage { messages: 1, bytes: 30 });
        ledger.release("bob", "alice", unknown);
        assert_eq!(ledger.accounts["bob"].total, Usage::default());
        assert!(ledger.accounts["bob"].senders.is_empty());
        ledger.release("bob", "alice", ONE);
        assert_eq!(ledger.accounts["bob"].total, Usage::default());
    }

    #[test]
    fn what_comes_and_goes_during_a_count_is_not_lost() {
        let (mut ledger, now) = counted("bob");
        ledger.begin_count(&names("bob"));
        ledger.reserve("bob", "alice", ONE, SHARE, now).unwrap();
        let waiting = Waiting {
            recipient: "bob".to_owned(),
            sender: "alice".to_owned(),
            messages: 4,
            bytes: 40,
        };
        ledger.finish_count(&names("bob"), vec![waiting], now);
        let account = &ledger.accounts["bob"];
        assert_eq!(account.total, Usage { messages: 5, bytes: 50 });
        assert_eq!(account.sender("alice"), account.total);
        assert!(account.meanwhile.is_none());
    }

    #[test]
    fn old_numbers_are_doubted_only_when_they_are_not_small() {
        let (mut ledger, now) = counted("bob");
        let old = now + RECOUNT;
        assert_eq!(ledger.doubtful(&names("bob"), "alice", SHARE, old), Vec::<String>::new());
        for _ in 0..2 {
            ledger.reserve("bob", "alice", ONE, SHARE, now).unwrap();
        }
        assert_eq!(ledger.doubtful(&names("bob"), "alice", SHARE, now), Vec::<String>::new());
        assert_eq!(ledger.doubtful(&names("bob"), "alice", SHARE, old), names("bob"));
        assert_eq!(ledger.doubtful(&names("stranger"), "alice", SHARE, now), names("stranger"));
    }

    #[test]
    fn too_much_memory_is_given_back_by_the_oldest() {
        let (mut ledger, now) = counted("first");
        for number in 0..MAX_PAIRS / 2 {
            let name = format!("r{number}");
            ledger.reserve(&name, "alice", ONE, SHARE, now).unwrap();
        }
        ledger.forget_old();
        assert!(!ledger.accounts.contains_key("first"));
        let last = format!("r{}", MAX_PAIRS / 2 - 1);
        assert!(ledger.accounts.contains_key(last.as_str()));
        assert!(ledger.accounts.len() <= MAX_PAIRS / 4 + 1);
    }

    fn names(name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    fn counted(name: &str) -> (Ledger, Instant) {
        let mut ledger = Ledger::default();
        let now = crate::clock::Clock::default().instant();
        ledger.begin_count(&names(name));
        ledger.finish_count(&names(name), Vec::new(), now);
        (ledger, now)
    }
}
