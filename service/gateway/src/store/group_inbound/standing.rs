//! How senders stand to a group, and what changes that.

use fieldpost_delivery::Time;
use sqlx::PgConnection;

use super::{GroupInbound, GroupWord};
use crate::store::groups::invitations::INVITATION_LIFETIME;

/// How the sender of something stands to the group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    Member,
    Invited,
    /// Was one of these once.
    Former,
    Stranger,
}

pub(super) async fn standing(
    connection: &mut PgConnection,
    group: &str,
    sender: &str,
    now: Time,
) -> sqlx::Result<Standing> {
    let row = sqlx::query!(
        r#"
        select is_active and left_at is null as "is_member!",
               is_active and coalesce(invited_at > $3, false) as "is_invited!"
        from group_member join peer_group on peer_group.id = group_id
        where group_id = $1 and peer = $2
        "#,
        group,
        sender,
        now - INVITATION_LIFETIME,
    )
    .fetch_optional(connection)
    .await?;
    Ok(match row {
        Some(row) if row.is_member => Standing::Member,
        Some(row) if row.is_invited => Standing::Invited,
        Some(_) => Standing::Former,
        None => Standing::Stranger,
    })
}

/// The receipt, and its reason, of what is answered without its content being kept.
pub(super) fn dismissal(
    now: Time,
    inbound: &GroupInbound<'_>,
    standing: Standing,
) -> Option<(&'static str, Option<String>)> {
    let (sender, group) = (inbound.message.sender.to_string(), inbound.group.as_str());
    match (inbound.kind, standing) {
        _ if inbound.message.expires_at <= now => {
            Some(("refused", Some("its time was over when it came".to_owned())))
        }
        (GroupWord::Message, Standing::Former | Standing::Stranger) => {
            Some(("refused", Some(not_a_member(&sender, group))))
        }
        // It may come before the word that makes its sender a member, if that comes before it.
        (GroupWord::Message, Standing::Invited) if inbound.after.is_none() => {
            Some(("refused", Some(not_a_member(&sender, group))))
        }
        (GroupWord::Message, Standing::Member) if !inbound.has_room => {
            Some(("refused", Some("the storage of all members is full".to_owned())))
        }
        (GroupWord::Accept, Standing::Former | Standing::Stranger) => {
            Some(("refused", Some(no_invitation(&sender, group))))
        }
        (GroupWord::Decline | GroupWord::Leave, Standing::Former | Standing::Stranger) => {
            Some(("delivered", None))
        }
        _ => None,
    }
}

/// Makes an invited peer a member; false if it is not invited. A member stays one.
pub(super) async fn accept(
    connection: &mut PgConnection,
    group: &str,
    sender: &str,
    now: Time,
) -> sqlx::Result<bool> {
    sqlx::query!(
        r#"
        update group_member
        set joined_at = case when left_at is null then joined_at else $3 end,
            left_at = null, invited_at = null, invited_by = null, invitation = null
        from peer_group
        where group_id = $1 and peer = $2 and peer_group.id = group_id and is_active
          and (left_at is null or invited_at > $4)
        "#,
        group,
        sender,
        now,
        now - INVITATION_LIFETIME,
    )
    .execute(connection)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// Ends a membership or an invitation, whichever there is: who declines may have accepted a moment
/// before.
pub(super) async fn part(
    connection: &mut PgConnection,
    group: &str,
    sender: &str,
    now: Time,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        update group_member
        set left_at = coalesce(left_at, $3), invited_at = null, invited_by = null,
            invitation = null
        where group_id = $1 and peer = $2
        "#,
        group,
        sender,
        now,
    )
    .execute(connection)
    .await
    .map(drop)
}

pub(super) fn not_a_member(sender: &str, group: &str) -> String {
    format!("{} is not a member of group {group}", bare(sender))
}

pub(super) fn no_invitation(sender: &str, group: &str) -> String {
    format!("there is no invitation of {} to group {group}", bare(sender))
}

/// The sender's gateway knows which peers are its own, and reasons are short.
fn bare(sender: &str) -> &str {
    sender.split('@').next().unwrap_or(sender)
}
