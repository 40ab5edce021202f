//! Where a bare name leads: to a peer of this gateway, else by the sender's pins, else by the rosters
//! of trusted gateways (design, section 4); and the messages that wait for a name that nobody has.

use chrono::TimeDelta;
use fieldpost_delivery::Time;
use fieldpost_envelope::{GatewayId, MessageId, PeerAddress, PeerId, Priority, Recipient};
use sqlx::PgConnection;

use crate::{
    config::Trust,
    store::{
        Store,
        messages::{Sealed, conversation},
        words,
    },
};

/// Bare names that one sender can have pinned.
pub const MAX_PINS: i64 = 10_000;
/// Messages of one sender that can wait for names that nobody has yet.
pub const MAX_AWAITED: i64 = 10_000;
/// Gateways that an ambiguous name is answered with.
const MAX_CANDIDATES: i64 = 16;
/// What has stood for so long without a message was never accepted, or has ended.
const SURELY_ACCEPTED: TimeDelta = TimeDelta::minutes(1);

/// What is known of a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Name {
    /// Where it leads.
    pub leads: Named,
    /// Whether messages of the sender's wait for it to lead anywhere.
    pub is_awaited: bool,
}

/// Where a name leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Named {
    /// To a peer of this gateway.
    Here,
    /// To a peer of that one, as the sender has pinned it.
    Pinned(GatewayId),
    /// To a peer of the only trusted gateway that lists it; not pinned so far.
    Listed(GatewayId),
    /// Several trusted gateways list it; here are some of them.
    Ambiguous(Vec<GatewayId>),
    /// Nobody who is trusted lists it.
    Nowhere {
        /// Whether a gateway that is not trusted does.
        is_claimed: bool,
    },
}

/// That a sender means a peer of a certain gateway by a bare name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pin {
    /// The name.
    pub name: PeerId,
    /// Where it leads.
    pub gateway: GatewayId,
    /// Since when.
    pub pinned_at: Time,
}

/// Names of one sender's that wait, and where they lead now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Appeared {
    /// Who has written to it.
    pub sender: PeerId,
    /// Where it is.
    pub address: PeerAddress,
}

impl Store {
    /// Where `name` leads when `sender` writes it; nobody in particular has no pins.
    pub async fn find_name(
        &self,
        sender: Option<&PeerId>,
        name: &PeerId,
        trust: &Trust,
    ) -> sqlx::Result<Name> {
        if self.knows_peer(name) {
            return Ok(Name { leads: Named::Here, is_awaited: false });
        }
        let found = sqlx::query!(
            r#"
            select
                exists (select from peer where id = $2) as "is_here!",
                (select gateway from pin where sender = $1 and peer = $2) as pinned,
                array(
                    select r.gateway from remote_peer r join remote_gateway g using (gateway)
                    where r.peer = $2 and (r.gateway = any($3) or $4 and g.is_nearby)
                    order by r.gateway
                    limit $5
                ) as "candidates!",
                exists (select from remote_peer where peer = $2) as "is_claimed!",
                exists (select from awaited where sender = $1 and peer = $2) as "is_awaited!"
            "#,
            sender.map(PeerId::as_str),
            name.as_str(),
            &trusted(trust),
            trust.lan,
            MAX_CANDIDATES,
        )
        .fetch_one(&self.pool)
        .await?;
        if found.is_here {
            self.remember_peer(name);
        }
        let leads = match (found.is_here, found.pinned, found.candidates.as_slice()) {
            (true, _, _) => Named::Here,
            (false, Some(pinned), _) => Named::Pinned(words::parse(&pinned)?),
            (false, None, []) => Named::Nowhere { is_claimed: found.is_claimed },
            (false, None, [only]) => Named::Listed(words::parse(only)?),
            (false, None, several) => Named::Ambiguous(
                several.iter().map(|gateway| words::parse(gateway)).collect::<sqlx::Result<_>>()?,
            ),
        };
        Ok(Name { leads, is_awaited: found.is_awaited })
    }

    /// Pins `name` for `sender`, unless it is pinned already; returns to which gateway it is. `None`
    /// when the sender has as many pins as it may.
    pub async fn pin_name(
        &self,
        sender: &PeerId,
        name: &PeerId,
        gateway: GatewayId,
    ) -> sqlx::Result<Option<GatewayId>> {
        sqlx::query!(
            r#"
            insert into pin (sender, peer, gateway, pinned_at)
            select $1, $2, $3, $4
            where (select count(*) from pin where sender = $1) < $5
            on conflict do nothing
            "#,
            sender.as_str(),
            name.as_str(),
            gateway.to_string(),
            self.clock.now(),
            MAX_PINS,
        )
        .execute(&self.pool)
        .await?;
        self.pinned_to(sender, name).await
    }

    /// The gateway to which `sender` has pinned `name`.
    pub async fn pinned_to(
        &self,
        sender: &PeerId,
        name: &PeerId,
    ) -> sqlx::Result<Option<GatewayId>> {
        sqlx::query_scalar!(
            "select gateway from pin where sender = $1 and peer = $2",
            sender.as_str(),
            name.as_str(),
        )
        .fetch_optional(&self.pool)
        .await?
        .map(|gateway| words::parse(&gateway))
        .transpose()
    }

    /// Up to `limit` pins of `sender` by name, from the one after `after`.
    pub async fn pins(&self, sender: &PeerId, after: &str, limit: i64) -> sqlx::Result<Vec<Pin>> {
        sqlx::query!(
            r#"
            select peer, gateway, pinned_at from pin
            where sender = $1 and peer > $2
            order by peer
            limit $3
            "#,
            sender.as_str(),
            after,
            limit,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| {
            Ok(Pin {
                name: words::parse(&row.peer)?,
                gateway: words::parse(&row.gateway)?,
                pinned_at: row.pinned_at,
            })
        })
        .collect()
    }

    /// Removes a pin; whether there was one.
    pub async fn unpin_name(&self, sender: &PeerId, name: &PeerId) -> sqlx::Result<bool> {
        sqlx::query!(
            "delete from pin where sender = $1 and peer = $2",
            sender.as_str(),
            name.as_str(),
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected() > 0)
    }

    /// Notes, before it is accepted, that a message will wait for a name that nobody has. `false`
    /// when as many of the sender's wait as may.
    pub async fn await_name(
        &self,
        sender: &PeerId,
        id: MessageId,
        name: &PeerId,
        expires_at: Time,
    ) -> sqlx::Result<bool> {
        sqlx::query!(
            r#"
            insert into awaited (message_id, sender, peer, created_at, expires_at)
            select $1, $2, $3, $4, $5
            where (select count(*) from awaited where sender = $2) < $6
            on conflict (message_id, sender) do update set created_at = excluded.created_at
            "#,
            id.0,
            sender.as_str(),
            name.as_str(),
            self.clock.now(),
            expires_at,
            MAX_AWAITED,
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected() > 0)
    }

    /// Names that senders wait for and that lead somewhere now, at most `limit`.
    pub async fn appeared_names(&self, trust: &Trust, limit: i64) -> sqlx::Result<Vec<Appeared>> {
        let rows = sqlx::query!(
            r#"
            select a.sender as "sender!", a.peer as "peer!",
                   coalesce(p.gateway, c.gateway) as "gateway!"
            from (select distinct sender, peer from awaited) a
            left join pin p on (p.sender, p.peer) = (a.sender, a.peer)
            left join lateral (
                select min(r.gateway) as gateway
                from remote_peer r join remote_gateway g using (gateway)
                where r.peer = a.peer and (r.gateway = any($1) or $2 and g.is_nearby)
                having count(*) = 1
            ) c on true
            where coalesce(p.gateway, c.gateway) is not null
              and not exists (select from peer where id = a.peer)
            order by a.sender, a.peer
            limit $3
            "#,
            &trusted(trust),
            trust.lan,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(Appeared {
                    sender: words::parse(&row.sender)?,
                    address: PeerAddress::remote(
                        words::parse(&row.peer)?,
                        words::parse(&row.gateway)?,
                    ),
                })
            })
            .collect()
    }

    /// Moves up to `limit` messages of one sender, which wait in the inbox of an unknown name, to the
    /// outbox, addressed to where the name was found; the oldest first.
    ///
    /// Each is in one of the two at any time, and takes the next place of its new lane. What was
    /// shown to somebody stays: a peer of that name is here.
    pub async fn move_awaited(&self, appeared: &Appeared, limit: i64) -> sqlx::Result<u64> {
        let (sender, name) = (appeared.sender.as_str(), appeared.address.peer.as_str());
        let now = self.clock.now();
        let mut transaction = self.pool.begin().await?;
        let rows = sqlx::query!(
            r#"
            with waiting as (
                select i.recipient, i.position, i.message_id, i.sender
                from awaited a
                join inbox i
                    on (i.recipient, i.message_id, i.sender) = (a.peer, a.message_id, a.sender)
                where a.sender = $1 and a.peer = $2 and i.seq is null and i.expires_at > $3
                  and not exists (select from peer where id = $2)
                order by i.position
                limit $4
                for update of i
            ), gone as (
                delete from inbox i using waiting w
                where (i.recipient, i.position, i.message_id, i.sender)
                    = (w.recipient, w.position, w.message_id, w.sender)
                  and i.seq is null
                returning i.accepted_at, i.conversation, i.message_id
            )
            select m.accepted_at, m.conversation, m.message_id, m.sender, m.addressed_to,
                   m.expires_at, m.priority, m.min_anonymity, m.is_text, m.size_bytes, m.sealed
            from gone g
            join message m
                on (m.conversation, m.accepted_at, m.message_id, m.sender)
                 = (g.conversation, g.accepted_at, g.message_id, $1)
            order by m.accepted_at
            "#,
            sender,
            name,
            now,
            limit,
        )
        .fetch_all(&mut *transaction)
        .await?;
        let moved = rows.len() as u64;
        for row in rows {
            let filed = (row.conversation, row.size_bytes);
            let sealed = Sealed {
                accepted_at: row.accepted_at,
                message_id: row.message_id,
                sender: row.sender,
                addressed_to: row.addressed_to,
                expires_at: row.expires_at,
                priority: row.priority,
                min_anonymity: row.min_anonymity,
                is_text: row.is_text,
                sealed: row.sealed,
            };
            self.readdress(&mut transaction, sealed, filed, appeared).await?;
        }
        sqlx::query!(
            r#"
            delete from awaited a
            where sender = $1 and peer = $2 and created_at < $3
              and not exists (
                  select from inbox i
                  where (i.recipient, i.message_id, i.sender) = ($2, a.message_id, $1)
              )
            "#,
            sender,
            name,
            now - SURELY_ACCEPTED,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(moved)
    }

    /// Gives one message its new recipient, everywhere.
    async fn readdress(
        &self,
        connection: &mut PgConnection,
        row: Sealed,
        (filed, size_bytes): (i64, i32),
        appeared: &Appeared,
    ) -> sqlx::Result<()> {
        let (accepted_at, message_id, expires_at) =
            (row.accepted_at, row.message_id, row.expires_at);
        let (priority, level) = (row.priority, row.min_anonymity);
        let sender = appeared.sender.as_str();
        let name = appeared.address.peer.as_str();
        let address = appeared.address.to_string();
        let refiled = conversation(
            &PeerAddress::local(appeared.sender.clone()),
            &Recipient::Peer(appeared.address.clone()),
        );
        let files = self.unseal(row).await?.0.content.file_ids;
        sqlx::query!(
            r#"
            update message
            set conversation = $5, addressed_to = $6,
                recipients = array_replace(recipients, $7, $6)
            where conversation = $1 and accepted_at = $2 and message_id = $3 and sender = $4
            "#,
            filed,
            accepted_at,
            message_id,
            sender,
            refiled,
            address,
            name,
        )
        .execute(&mut *connection)
        .await?;
        sqlx::query!(
            "update message_key set conversation = $3 where message_id = $1 and sender = $2",
            message_id,
            sender,
            refiled,
        )
        .execute(&mut *connection)
        .await?;
        sqlx::query!(
            r#"
            insert into contact (peer, other, conversation) values ($1, $2, $3)
            on conflict do nothing
            "#,
            sender,
            address,
            refiled,
        )
        .execute(&mut *connection)
        .await?;
        let target = appeared.address.gateway.map(|home| home.to_string()).unwrap_or_default();
        if !files.is_empty() {
            // Whoever takes the name here one day has no part in them.
            sqlx::query!(
                "delete from file_reader where file_id = any($1) and peer = $2",
                &files,
                name,
            )
            .execute(&mut *connection)
            .await?;
            let (now, gateways) = (self.clock.now(), std::slice::from_ref(&target));
            Self::hand_on_files(&mut *connection, now, &files, level, &[], gateways).await?;
        }
        let lane_seq = match priority == words::priority_number(Priority::Critical) {
            true => None,
            false => Some(next_lane_seq(connection, sender, &address, level).await?),
        };
        sqlx::query!(
            r#"
            insert into outbox (
                message_id, sender, recipient, accepted_at, conversation, target, level,
                lane_seq, priority, size_bytes, next_attempt_at, expires_at
            ) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
            "#,
            message_id,
            sender,
            address,
            accepted_at,
            refiled,
            target,
            level,
            lane_seq,
            priority,
            size_bytes,
            self.clock.now(),
            expires_at,
        )
        .execute(&mut *connection)
        .await?;
        sqlx::query!(
            "delete from awaited where message_id = $1 and sender = $2",
            message_id,
            sender,
        )
        .execute(connection)
        .await
        .map(drop)
    }

    /// Forgets what waits no more: its time is over, or a peer of that name is here.
    pub async fn sweep_awaited(&self, now: Time) -> sqlx::Result<u64> {
        sqlx::query!(
            r#"
            delete from awaited
            where expires_at <= $1 or exists (select from peer where id = awaited.peer)
            "#,
            now,
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
    }
}

async fn next_lane_seq(
    connection: &mut PgConnection,
    sender: &str,
    recipient: &str,
    level: i16,
) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"
        insert into lane_out (sender, recipient, level, last_seq)
        values ($1, $2, $3, 1)
        on conflict (sender, recipient, level) do update set last_seq = lane_out.last_seq + 1
        returning last_seq
        "#,
        sender,
        recipient,
        level,
    )
    .fetch_one(connection)
    .await
}

fn trusted(trust: &Trust) -> Vec<String> {
    trust.gateways.iter().map(ToString::to_string).collect()
}
