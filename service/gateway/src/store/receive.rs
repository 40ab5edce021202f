//! Storing what comes from elsewhere: many messages in one transaction, each by itself.
//!
//! The lanes that they are of are locked first, in one order, and it is asked which are known. Then it
//! is asked what is held back, everything is decided in memory, and what follows is written at once.
//! Should another replica store one of them meanwhile, the names collide and all is tried again.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use fieldpost_delivery::{
    Correspondent, Held, Inbound, Progress, Received, Released, Time, known_after, pass_over,
    release,
};
use fieldpost_envelope::{LaneSeq, MessageId};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::store::{
    Store,
    batches::{Question, SLOW},
    content,
    inbox::{inbound_conversation, lane_name, lane_number, progress, receipts_to, size},
    messages::associated_data,
    words,
};

/// A message from elsewhere that is to be stored.
#[derive(Clone)]
pub(super) struct Arriving {
    now: Time,
    inbound: Arc<Inbound>,
    order_wait: Duration,
    /// Whether the receipt that becomes owed is kept until it has left.
    keeps_receipt: bool,
}

impl Question for Arriving {
    type Key = (String, String);
    const TOGETHER: usize = 256;
    const SHARES_KEYS: bool = true;
    const SECOND_AFTER: Duration = SLOW;

    fn key(&self) -> (String, String) {
        (self.inbound.message.sender.to_string(), self.inbound.recipient.to_string())
    }

    fn size_bytes(&self) -> usize {
        self.inbound.message.content.bytes.len()
    }
}

impl Arriving {
    fn name(&self) -> Name {
        (
            self.inbound.message.id.0,
            self.inbound.message.sender.to_string(),
            self.inbound.recipient.to_string(),
        )
    }

    fn lane(&self) -> LaneName {
        let message = &self.inbound.message;
        (
            message.sender.to_string(),
            self.inbound.signer().map(|gateway| gateway.to_string()).unwrap_or_default(),
            self.inbound.recipient.to_string(),
            words::level_number(message.min_anonymity),
        )
    }

    fn release_by(&self) -> Time {
        (self.now + self.order_wait).min(self.inbound.message.expires_at)
    }
}

/// Message, sender, recipient.
type Name = (Uuid, String, String);
/// Sender, whoever counts the lane and gets the receipts, recipient, level.
type LaneName = (String, String, String, i16);

impl Store {
    /// Stores a message from elsewhere, as [`fieldpost_delivery::Store::receive`] does. Without
    /// `keeps_receipt` the caller sends the receipt `stored` at once, and nothing is written of it:
    /// should this process end before, the sender asks again, as it does when a receipt is lost.
    pub async fn take_in(
        &self,
        now: Time,
        inbound: Arc<Inbound>,
        order_wait: Duration,
        keeps_receipt: bool,
    ) -> sqlx::Result<Received> {
        if inbound.signer().is_none() {
            return Ok(Received::Refused("the sender names no gateway".to_owned()));
        }
        if !self.peer_exists(&inbound.recipient).await? {
            return Ok(Received::Refused("no such peer at this gateway".to_owned()));
        }
        let arriving = Arriving { now, inbound, order_wait, keeps_receipt };
        let store = self.clone();
        let take = move |arriving| {
            let store = store.clone();
            async move { store.take_in_each(arriving).await }
        };
        self.arrivals.ask(arriving, take).await
    }

    async fn take_in_each(&self, arriving: Vec<Arriving>) -> sqlx::Result<Vec<Received>> {
        let mut answers: Vec<Option<Received>> = arriving.iter().map(|_| None).collect();
        let mut left: Vec<usize> = (0..arriving.len()).collect();
        // The same message twice is rare; the second one finds the first.
        while !left.is_empty() {
            let mut names = HashSet::with_capacity(left.len());
            let (first, again): (Vec<usize>, Vec<usize>) =
                left.into_iter().partition(|number| names.insert(arriving[*number].name()));
            let batch: Vec<&Arriving> = first.iter().map(|number| &arriving[*number]).collect();
            for (number, received) in first.into_iter().zip(self.take_in_once(&batch).await?) {
                answers[number] = Some(received);
            }
            left = again;
        }
        answers.into_iter().map(|answer| answer.ok_or(sqlx::Error::RowNotFound)).collect()
    }

    async fn take_in_once(&self, arriving: &[&Arriving]) -> sqlx::Result<Vec<Received>> {
        let now = arriving.iter().map(|one| one.now).max().unwrap_or_default();
        let mut connection = self.warm.take().await?;
        let mut transaction = sqlx::Connection::begin(&mut *connection).await?;
        let names = LaneRows::of(arriving);
        let known = lock_lanes(&mut transaction, &names, arriving).await?;
        let mut lanes = Lanes::read(&mut transaction, names).await?;
        let times = self.acceptance_times(now, arriving.len());
        let mut shown = BTreeMap::new();
        for (number, one) in arriving.iter().enumerate() {
            let is_fresh = !known.contains(&number);
            match one.inbound.lane_seq {
                Some(seq) => lanes.admit(one, seq, is_fresh),
                None if is_fresh => {
                    shown.insert(
                        one.name(),
                        Shown { at: times.at(number), gap: false, late: false },
                    );
                }
                None => {}
            }
        }
        let released = lanes.release();
        let positions = self.acceptance_times(now, released.len());
        for (number, (name, Released { gap, late, .. })) in released.into_iter().enumerate() {
            shown.insert(name, Shown { at: positions.at(number), gap, late });
        }
        let mut fresh = Fresh::default();
        let mut met = Vec::new();
        let mut answers = Vec::with_capacity(arriving.len());
        for (number, one) in arriving.iter().enumerate() {
            let name = one.name();
            fresh.owe_receipt(one);
            if known.contains(&number) {
                answers.push(Received::Duplicate);
                continue;
            }
            let at = times.at(number);
            let key = self.data_key(at.date_naive()).await?;
            let sealed = content::encode(&one.inbound.message, Some(one.inbound.shown_sent_at(at)))
                .and_then(|plain| {
                    key.seal(&associated_data(name.0, &name.1), &plain).map_err(Into::into)
                })
                .map_err(sqlx::Error::Encode)?;
            let shown = shown.remove(&name);
            answers.push(Received::Stored {
                visible: shown.is_some() || one.inbound.lane_seq.is_none(),
            });
            let after = lanes.after(one);
            fresh.push(one, at, shown, after, sealed);
            met.push((name.1, name.2));
        }
        fresh.meet(self, &met);
        fresh.insert(&mut transaction, &lanes.moved()).await?;
        lanes.write(&mut transaction, &shown).await?;
        renew_receipts(&mut transaction, now, arriving, &known).await?;
        // Even a copy can tell of a predecessor that has ended, and so bring others out.
        if self.announces {
            let names: Vec<String> =
                arriving.iter().map(|one| one.inbound.recipient.to_string()).collect();
            self.announce(&mut transaction, &names).await?;
        }
        transaction.commit().await?;
        connection.keep();
        self.contacts.remember(&fresh.contact_peer, &fresh.contact_other);
        Ok(answers)
    }
}

/// When and how a message comes into its recipient's inbox.
#[derive(Clone, Copy)]
struct Shown {
    at: Time,
    gap: bool,
    late: bool,
}

/// Locks the lanes, and returns the numbers of those that had come before. Should one come to another
/// replica until the lock is had, its name collides later.
async fn lock_lanes(
    connection: &mut PgConnection,
    lanes: &LaneRows,
    arriving: &[&Arriving],
) -> sqlx::Result<HashSet<usize>> {
    let names: Vec<Name> = arriving.iter().map(|one| one.name()).collect();
    let known = sqlx::query_scalar!(
        r#"
        with locked as (
            -- The condition keeps the row as it is, and locks it all the same.
            insert into lane_in (sender, recipient, level, last_shown)
            select sender, recipient, level, 0
            from unnest($1::text[], $2::text[], $3::smallint[]) as asked (sender, recipient, level)
            on conflict (sender, recipient, level) do update set last_shown = 0 where false
        )
        select number as "number!"
        from unnest($4::uuid[], $5::text[], $6::text[])
            with ordinality as asked (message_id, sender, recipient, number)
        join inbound using (message_id, sender, recipient)
        "#,
        &lanes.lanes,
        &lanes.recipients,
        &lanes.levels,
        &names.iter().map(|name| name.0).collect::<Vec<_>>(),
        &names.iter().map(|name| name.1.clone()).collect::<Vec<_>>(),
        &names.iter().map(|name| name.2.clone()).collect::<Vec<_>>(),
    )
    .fetch_all(connection)
    .await?;
    Ok(known.into_iter().map(|number| number as usize - 1).collect())
}

/// The lanes that messages are of, as columns.
struct LaneRows {
    /// As their rows are named.
    lanes: Vec<String>,
    senders: Vec<String>,
    gateways: Vec<String>,
    recipients: Vec<String>,
    levels: Vec<i16>,
}

impl LaneRows {
    fn of(arriving: &[&Arriving]) -> Self {
        // In the order of their rows' names, so that two transactions do not wait for each other.
        let names: BTreeMap<(String, String, i16), LaneName> = arriving
            .iter()
            .filter(|one| one.inbound.lane_seq.is_some())
            .map(|one| one.lane())
            .map(|name| ((lane_name(&name.0, &name.1), name.2.clone(), name.3), name))
            .collect();
        Self {
            lanes: names.keys().map(|row| row.0.clone()).collect(),
            senders: names.values().map(|name| name.0.clone()).collect(),
            gateways: names.values().map(|name| name.1.clone()).collect(),
            recipients: names.values().map(|name| name.2.clone()).collect(),
            levels: names.values().map(|name| name.3).collect(),
        }
    }
}

/// The lanes that messages are of, locked until the transaction ends.
struct Lanes(BTreeMap<LaneName, Lane>);

struct Lane {
    progress: Progress,
    held: Vec<Held>,
    /// The two of the database.
    stored_progress: Progress,
    stored: Vec<Held>,
}

impl Lanes {
    async fn read(connection: &mut PgConnection, names: LaneRows) -> sqlx::Result<Self> {
        if names.lanes.is_empty() {
            return Ok(Self(BTreeMap::new()));
        }
        let rows = sqlx::query!(
            r#"
            select asked.sender as "sender!", asked.gateway as "gateway!",
                   asked.recipient as "recipient!", asked.level as "level!", l.last_shown, l.owes_gap,
                   b.message_id as "message_id?", b.lane_seq, b.after_seq
            from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::smallint[])
                as asked (lane, sender, gateway, recipient, level)
            join lane_in l
                on (l.sender, l.recipient, l.level) = (asked.lane, asked.recipient, asked.level)
            left join inbound b
                on b.sender = asked.sender and b.recipient = asked.recipient
                and b.level = asked.level and b.gateway = asked.gateway
                and b.release_at is not null
            "#,
            &names.lanes,
            &names.senders,
            &names.gateways,
            &names.recipients,
            &names.levels,
        )
        .fetch_all(connection)
        .await?;
        let mut lanes = BTreeMap::new();
        for row in rows {
            let progress = progress(row.last_shown, row.owes_gap);
            let lane = lanes
                .entry((row.sender, row.gateway, row.recipient, row.level))
                .or_insert_with(|| Lane {
                    progress,
                    stored_progress: progress,
                    held: Vec::new(),
                    stored: Vec::new(),
                });
            if let (Some(id), Some(seq)) = (row.message_id, row.lane_seq) {
                lane.stored.push(Held {
                    lane_seq: LaneSeq(seq.unsigned_abs()),
                    id: MessageId(id),
                    after: row.after_seq.map(|after| LaneSeq(after.unsigned_abs())),
                });
            }
        }
        for lane in lanes.values_mut() {
            lane.held.clone_from(&lane.stored);
        }
        Ok(Self(lanes))
    }

    /// Lets one in, and learns what its envelope tells of the places before it.
    fn admit(&mut self, one: &Arriving, seq: LaneSeq, is_fresh: bool) {
        let Some(lane) = self.0.get_mut(&one.lane()) else { return };
        pass_over(&mut lane.held, seq, one.inbound.after);
        if is_fresh {
            let after = known_after(&lane.held, seq, one.inbound.after);
            lane.held.push(Held { lane_seq: seq, id: one.inbound.message.id, after });
        }
    }

    /// Takes out, in order, what may be shown.
    fn release(&mut self) -> Vec<(Name, Released)> {
        let mut all = Vec::new();
        for ((sender, _, recipient, _), lane) in &mut self.0 {
            let released = release(&mut lane.progress, &mut lane.held, None);
            all.extend(
                released
                    .into_iter()
                    .map(|message| ((message.id.0, sender.clone(), recipient.clone()), message)),
            );
        }
        all
    }

    /// What one that is held back waits for.
    fn after(&self, one: &Arriving) -> Option<LaneSeq> {
        let held = self.0.get(&one.lane()).map_or(&[][..], |lane| &lane.held);
        let found = held.iter().find(|held| held.id == one.inbound.message.id);
        found.map_or(one.inbound.after, |held| held.after)
    }

    /// How far those have come that have moved.
    fn moved(&self) -> Vec<(&LaneName, Progress)> {
        self.0
            .iter()
            .filter(|(_, lane)| lane.progress != lane.stored_progress)
            .map(|(name, lane)| (name, lane.progress))
            .collect()
    }

    /// Writes what was learnt of those that are held back, and those that were and are now `shown`.
    async fn write(
        &self,
        connection: &mut PgConnection,
        shown: &BTreeMap<Name, Shown>,
    ) -> sqlx::Result<()> {
        self.write_learnt(connection).await?;
        if shown.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            r#"
            with shown as (
                select * from unnest(
                    $1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::boolean[],
                    $6::boolean[]
                ) as shown (message_id, sender, recipient, position, late, gap)
            ), released as (
                update inbound b set position = s.position, release_at = null
                from shown s
                where (b.message_id, b.sender, b.recipient)
                    = (s.message_id, s.sender, s.recipient)
                returning b.recipient, s.position, b.message_id, b.sender, b.accepted_at,
                          b.conversation, b.expires_at, b.size_bytes, s.late, s.gap
            )
            insert into inbox (
                recipient, position, message_id, sender, accepted_at, conversation, expires_at,
                size_bytes, late, gap
            )
            select * from released
            "#,
            &shown.keys().map(|name| name.0).collect::<Vec<_>>(),
            &shown.keys().map(|name| name.1.clone()).collect::<Vec<_>>(),
            &shown.keys().map(|name| name.2.clone()).collect::<Vec<_>>(),
            &shown.values().map(|shown| shown.at).collect::<Vec<_>>(),
            &shown.values().map(|shown| shown.late).collect::<Vec<_>>(),
            &shown.values().map(|shown| shown.gap).collect::<Vec<_>>(),
        )
        .execute(connection)
        .await
        .map(drop)
    }

    async fn write_learnt(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let (mut names, mut afters): (Vec<Name>, Vec<Option<i64>>) = (Vec::new(), Vec::new());
        for ((sender, _, recipient, _), lane) in &self.0 {
            let before: HashMap<MessageId, Option<LaneSeq>> =
                lane.stored.iter().map(|held| (held.id, held.after)).collect();
            for held in &lane.held {
                if before.get(&held.id).is_some_and(|after| *after != held.after) {
                    names.push((held.id.0, sender.clone(), recipient.clone()));
                    afters.push(held.after.map(lane_number));
                }
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            r#"
            update inbound b set after_seq = learnt.after_seq
            from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[])
                as learnt (message_id, sender, recipient, after_seq)
            where (b.message_id, b.sender, b.recipient)
                = (learnt.message_id, learnt.sender, learnt.recipient)
            "#,
            &names.iter().map(|name| name.0).collect::<Vec<_>>(),
            &names.iter().map(|name| name.1.clone()).collect::<Vec<_>>(),
            &names.iter().map(|name| name.2.clone()).collect::<Vec<_>>(),
            &afters as &[Option<i64>],
        )
        .execute(connection)
        .await
        .map(drop)
    }
}

/// Other copies have come: the sender may never have recorded the envelope of the one before, and it
/// has not heard how the message fared.
async fn renew_receipts(
    connection: &mut PgConnection,
    now: Time,
    arriving: &[&Arriving],
    known: &HashSet<usize>,
) -> sqlx::Result<()> {
    if known.is_empty() {
        return Ok(());
    }
    let known: Vec<&&Arriving> = known.iter().map(|number| &arriving[*number]).collect();
    let names: Vec<Name> = known.iter().map(|one| one.name()).collect();
    sqlx::query!(
        r#"
        with renewed as (
            update inbound b set digest = copy.digest
            from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[])
                as copy (message_id, sender, recipient, digest)
            where (b.message_id, b.sender, b.recipient)
                = (copy.message_id, copy.sender, copy.recipient)
            returning b.message_id, b.sender, b.recipient, b.digest, b.accepted_at, b.gateway,
                      b.level
        )
        insert into receipt (digest, kind, gateway, at, level, next_attempt_at, expires_at)
        select r.digest, d.status, r.gateway, d.at, r.level, $5::timestamptz,
               $5 + interval '30 days'
        from renewed r
        join delivery d
            on (d.message_id, d.sender, d.recipient, d.accepted_at)
             = (r.message_id, r.sender, r.recipient, r.accepted_at)
        where d.status in ('delivered', 'read') and r.gateway <> ''
        on conflict (digest, kind) do update set next_attempt_at = excluded.next_attempt_at
        "#,
        &names.iter().map(|name| name.0).collect::<Vec<_>>(),
        &names.iter().map(|name| name.1.clone()).collect::<Vec<_>>(),
        &names.iter().map(|name| name.2.clone()).collect::<Vec<_>>(),
        &known.iter().map(|one| one.inbound.envelope.to_vec()).collect::<Vec<_>>(),
        now,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// What is stored for the first time, as columns.
#[derive(Default)]
struct Fresh {
    message_id: Vec<Uuid>,
    sender: Vec<String>,
    recipient: Vec<String>,
    accepted_at: Vec<Time>,
    conversation: Vec<i64>,
    position: Vec<Option<Time>>,
    digest: Vec<Vec<u8>>,
    gateway: Vec<String>,
    transport: Vec<String>,
    level: Vec<i16>,
    lane_seq: Vec<Option<i64>>,
    after: Vec<Option<i64>>,
    release_at: Vec<Option<Time>>,
    expires_at: Vec<Time>,
    size_bytes: Vec<i32>,
    gap: Vec<bool>,
    late: Vec<bool>,
    addressed_to: Vec<String>,
    priority: Vec<i16>,
    is_text: Vec<bool>,
    sealed: Vec<Vec<u8>>,
    contact_peer: Vec<String>,
    contact_other: Vec<String>,
    contact_conversation: Vec<i64>,
    receipt: Receipts,
}

/// Receipts `stored` that are owed.
#[derive(Default)]
struct Receipts {
    digest: Vec<Vec<u8>>,
    gateway: Vec<String>,
    at: Vec<Time>,
    level: Vec<i16>,
    expires_at: Vec<Time>,
}

impl Fresh {
    fn push(
        &mut self,
        one: &Arriving,
        at: Time,
        shown: Option<Shown>,
        after: Option<LaneSeq>,
        sealed: Vec<u8>,
    ) {
        let (inbound, message) = (&one.inbound, &one.inbound.message);
        let (message_id, sender, recipient) = one.name();
        self.message_id.push(message_id);
        self.sender.push(sender);
        self.recipient.push(recipient);
        self.accepted_at.push(at);
        self.conversation.push(inbound_conversation(inbound));
        self.position.push(shown.map(|shown| shown.at));
        self.digest.push(inbound.envelope.to_vec());
        self.gateway.push(receipts_to(inbound).map(|to| to.to_string()).unwrap_or_default());
        self.transport.push(inbound.transport.clone());
        self.level.push(words::level_number(message.min_anonymity));
        self.lane_seq.push(inbound.lane_seq.map(lane_number));
        self.after.push(after.map(lane_number));
        self.release_at.push(shown.is_none().then(|| one.release_by()));
        self.expires_at.push(message.expires_at);
        self.size_bytes.push(size(inbound));
        self.gap.push(shown.is_some_and(|shown| shown.gap));
        self.late.push(shown.is_some_and(|shown| shown.late));
        self.addressed_to.push(message.to.to_string());
        self.priority.push(words::priority_number(message.priority));
        self.is_text.push(message.content.is_text);
        self.sealed.push(sealed);
    }

    /// `stored` is owed for each copy that comes: the one before may have been lost. Nobody retries a
    /// broadcast, so nobody has to be told of it.
    fn owe_receipt(&mut self, one: &Arriving) {
        if !one.keeps_receipt {
            return;
        }
        let message = &one.inbound.message;
        // Phones have no word for it.
        let Some(Correspondent::Gateway(gateway)) = receipts_to(&one.inbound) else { return };
        let owed = &mut self.receipt;
        owed.digest.push(one.inbound.envelope.to_vec());
        owed.gateway.push(gateway.to_string());
        owed.at.push(one.now);
        owed.level.push(words::level_number(message.min_anonymity));
        owed.expires_at.push(message.expires_at);
    }

    /// Takes up those whose sender and recipient are not known to have met.
    fn meet(&mut self, store: &Store, pairs: &[(String, String)]) {
        let (senders, recipients): (Vec<String>, Vec<String>) = pairs.iter().cloned().unzip();
        for number in store.contacts.unknown(&senders, &recipients) {
            self.contact_peer.push(senders[number].clone());
            self.contact_other.push(recipients[number].clone());
            self.contact_conversation.push(self.conversation[number]);
        }
    }

    /// Writes them, and how far their lanes have come.
    async fn insert(
        &self,
        connection: &mut PgConnection,
        moved: &[(&LaneName, Progress)],
    ) -> sqlx::Result<()> {
        let last_shown = |progress: &Progress| progress.last_shown.map_or(0, lane_number);
        sqlx::query!(
            r#"
            with fresh as (
                select * from unnest(
                    $1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::bigint[],
                    $6::timestamptz[], $7::bytea[], $8::text[], $9::text[], $10::smallint[],
                    $11::bigint[], $12::bigint[], $13::timestamptz[], $14::timestamptz[],
                    $15::integer[], $16::boolean[],
                    $29::boolean[]
                ) as fresh (
                    message_id, sender, recipient, accepted_at, conversation, position, digest,
                    gateway, transport, level, lane_seq, after_seq, release_at, expires_at,
                    size_bytes, late, gap
                )
            ), met as (
                insert into contact (peer, other, conversation)
                select distinct * from unnest($21::text[], $22::text[], $23::bigint[])
                order by 1, 2
                on conflict do nothing
            ), owed as (
                insert into receipt (digest, kind, gateway, at, level, next_attempt_at, expires_at)
                select distinct on (digest) digest, 'stored', gateway, at, level, at, expires_at
                from unnest(
                    $24::bytea[], $25::text[], $26::timestamptz[], $27::smallint[],
                    $28::timestamptz[]
                ) as owed (digest, gateway, at, level, expires_at)
                on conflict (digest, kind) do update set next_attempt_at = excluded.next_attempt_at
            ), moved as (
                update lane_in l set last_shown = m.last_shown, owes_gap = m.owes_gap
                from unnest($30::text[], $31::text[], $32::smallint[], $33::bigint[], $34::boolean[])
                    as m (sender, recipient, level, last_shown, owes_gap)
                where (l.sender, l.recipient, l.level) = (m.sender, m.recipient, m.level)
            ), came as (
                insert into inbound (
                    message_id, sender, recipient, accepted_at, conversation, position, digest,
                    gateway, transport, level, lane_seq, after_seq, release_at, expires_at,
                    size_bytes
                )
                select message_id, sender, recipient, accepted_at, conversation, position, digest,
                       gateway, transport, level, lane_seq, after_seq, release_at, expires_at,
                       size_bytes
                from fresh
            ), kept as (
                insert into message (
                    accepted_at, conversation, message_id, sender, addressed_to, recipients,
                    expires_at, priority, min_anonymity, is_text, size_bytes, sealed
                )
                select accepted_at, conversation, message_id, sender, addressed_to,
                       array[recipient], expires_at, priority, level, is_text, size_bytes, sealed
                from unnest(
                    $4::timestamptz[], $5::bigint[], $1::uuid[], $2::text[], $17::text[],
                    $3::text[], $14::timestamptz[], $18::smallint[], $10::smallint[],
                    $19::boolean[], $15::integer[], $20::bytea[]
                ) as kept (
                    accepted_at, conversation, message_id, sender, addressed_to, recipient,
                    expires_at, priority, level, is_text, size_bytes, sealed
                )
            )
            insert into inbox (
                recipient, position, message_id, sender, accepted_at, conversation, expires_at,
                size_bytes, late, gap
            )
            select recipient, position, message_id, sender, accepted_at, conversation, expires_at,
                   size_bytes, late, gap
            from fresh where position is not null
            "#,
            &self.message_id,
            &self.sender,
            &self.recipient,
            &self.accepted_at,
            &self.conversation,
            &self.position as &[Option<Time>],
            &self.digest,
            &self.gateway,
            &self.transport,
            &self.level,
            &self.lane_seq as &[Option<i64>],
            &self.after as &[Option<i64>],
            &self.release_at as &[Option<Time>],
            &self.expires_at,
            &self.size_bytes,
            &self.late,
            &self.addressed_to,
            &self.priority,
            &self.is_text,
            &self.sealed,
            &self.contact_peer,
            &self.contact_other,
            &self.contact_conversation,
            &self.receipt.digest,
            &self.receipt.gateway,
            &self.receipt.at,
            &self.receipt.level,
            &self.receipt.expires_at,
            &self.gap,
            &moved.iter().map(|(name, _)| lane_name(&name.0, &name.1)).collect::<Vec<_>>(),
            &moved.iter().map(|(name, _)| name.2.clone()).collect::<Vec<_>>(),
            &moved.iter().map(|(name, _)| name.3).collect::<Vec<_>>(),
            &moved.iter().map(|(_, progress)| last_shown(progress)).collect::<Vec<_>>(),
            &moved.iter().map(|(_, progress)| progress.owes_gap).collect::<Vec<_>>(),
        )
        .execute(connection)
        .await
        .map(drop)
    }
}
