//! What senders' gateways are told.

use chrono::TimeDelta;
use fieldpost_delivery::Time;
use sqlx::PgConnection;

use super::GroupInbound;
use crate::store::words;

/// How long `delivered` and `refused` are repeated.
const RECEIPT_LIFETIME: TimeDelta = TimeDelta::days(30);

/// Where the receipts of something said to a group go.
pub(super) struct Receipts {
    pub(super) digest: Vec<u8>,
    pub(super) gateway: String,
    pub(super) level: i16,
}

impl GroupInbound<'_> {
    pub(super) fn receipts(&self) -> Receipts {
        Receipts {
            digest: self.digest.to_vec(),
            gateway: self.gateway.to_string(),
            level: words::level_number(self.message.min_anonymity),
        }
    }
}

pub(super) async fn owe(
    connection: &mut PgConnection,
    now: Time,
    to: &Receipts,
    kind: &str,
    reason: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into receipt (digest, kind, gateway, at, reason, level, next_attempt_at, expires_at)
        values ($1, $2, $3, $4, $5, $6, $4, $7)
        on conflict (digest, kind) do update set next_attempt_at = excluded.next_attempt_at
        "#,
        to.digest,
        kind,
        to.gateway,
        now,
        reason,
        to.level,
        now + RECEIPT_LIFETIME,
    )
    .execute(connection)
    .await
    .map(drop)
}
