//! Who gets what is sent to a group, and how much was.

use chrono::{DateTime, Utc};
use fieldpost_envelope::{GroupId, PeerAddress};

use crate::store::{Store, words::parse};

/// Who gets what is sent to a group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FanOut {
    /// There is no such group.
    Unknown,
    /// The sender does not belong to it.
    NotMember,
    /// All members but the sender.
    Members(Vec<PeerAddress>),
}

/// How many messages of one sender a group has accepted, for [`Store::record_group_messages`].
#[derive(Clone, Debug)]
pub struct GroupTraffic {
    /// The group.
    pub group: GroupId,
    /// Who sent.
    pub sender: PeerAddress,
    /// How many.
    pub messages: i64,
    /// When the last was accepted.
    pub last_at: DateTime<Utc>,
}

impl Store {
    /// Who gets what `sender` sends to the group.
    pub async fn group_fan_out(&self, id: &GroupId, sender: &PeerAddress) -> sqlx::Result<FanOut> {
        let sender = sender.to_string();
        let members = sqlx::query_scalar!(
            r#"
            select peer from group_member
            join peer_group on peer_group.id = group_id
            where group_id = $1 and left_at is null and is_active
            order by peer
            "#,
            id.as_str(),
        )
        .fetch_all(&self.pool)
        .await?;
        // An open group is never without members.
        if members.is_empty() {
            return Ok(FanOut::Unknown);
        }
        if !members.contains(&sender) {
            return Ok(FanOut::NotMember);
        }
        members
            .iter()
            .filter(|member| **member != sender)
            .map(|member| parse(member))
            .collect::<sqlx::Result<_>>()
            .map(FanOut::Members)
    }

    /// Adds to the counters of groups and members what was accepted since the last call, in one
    /// statement for any number of messages.
    pub async fn record_group_messages(&self, traffic: &[GroupTraffic]) -> sqlx::Result<()> {
        // Rows are locked in one order, so that replicas that write at the same moment cannot
        // wait for each other.
        let mut traffic: Vec<_> = traffic.iter().collect();
        traffic.sort_unstable_by(|a, b| (&a.group, &a.sender).cmp(&(&b.group, &b.sender)));
        let groups: Vec<_> = traffic.iter().map(|entry| entry.group.to_string()).collect();
        let senders: Vec<_> = traffic.iter().map(|entry| entry.sender.to_string()).collect();
        let messages: Vec<_> = traffic.iter().map(|entry| entry.messages).collect();
        let last: Vec<_> = traffic.iter().map(|entry| entry.last_at).collect();
        let mut transaction = self.pool.begin().await?;
        sqlx::query!(
            r#"
            with locked as (
                select id from peer_group where id = any($1) order by id for no key update
            ), news as (
                select id, sum(messages)::bigint as messages, max(last_at) as last_at
                from unnest($1::text[], $2::bigint[], $3::timestamptz[])
                    as given (id, messages, last_at)
                group by id
            )
            update peer_group
            set message_count = message_count + news.messages,
                last_message_at = greatest(last_message_at, news.last_at)
            from locked join news using (id)
            where peer_group.id = locked.id
            "#,
            &groups,
            &messages,
            &last,
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query!(
            r#"
            with news as (
                select group_id, peer, sum(messages)::bigint as messages
                from unnest($1::text[], $2::text[], $3::bigint[])
                    as given (group_id, peer, messages)
                group by group_id, peer
            )
            update group_member
            set messages_sent = messages_sent + news.messages
            from news
            where (group_member.group_id, group_member.peer) = (news.group_id, news.peer)
            "#,
            &groups,
            &senders,
            &messages,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await
    }
}
