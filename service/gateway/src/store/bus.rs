//! `LISTEN` and `NOTIFY`: one notification for each commit, never for each row.

use fieldpost_envelope::PeerId;
use sqlx::{PgConnection, postgres::PgListener};

use crate::store::Store;

/// The channel on which commits are announced.
const CHANNEL: &str = "fieldpost_inbox";
/// The most that Postgres carries in a notification, in bytes.
const MAX_PAYLOAD: usize = 7999;
/// What stands for more names than fit.
const EVERYBODY: &str = "*";

/// What a notification asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Wake {
    /// The inboxes of these peers have grown.
    Peers(Vec<PeerId>),
    /// Some have, or may have while nobody listened.
    Everybody,
}

/// A connection that hears what other replicas commit.
pub struct Wakes(PgListener);

impl Wakes {
    /// Waits for the next notification. A connection that was lost and found again counts as one
    /// for everybody.
    pub async fn next(&mut self) -> sqlx::Result<Wake> {
        Ok(match self.0.try_recv().await? {
            None => Wake::Everybody,
            Some(notification) if notification.payload() == EVERYBODY => Wake::Everybody,
            Some(notification) => Wake::Peers(
                notification.payload().split(' ').filter_map(|peer| peer.parse().ok()).collect(),
            ),
        })
    }
}

impl Store {
    /// Listens for what other replicas commit.
    pub async fn listen(&self) -> sqlx::Result<Wakes> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen(CHANNEL).await?;
        Ok(Wakes(listener))
    }

    /// Announces, with the commit of the transaction, that inboxes of `recipients` have grown.
    pub(super) async fn announce(
        &self,
        connection: &mut PgConnection,
        recipients: &[String],
    ) -> sqlx::Result<()> {
        let mut names: Vec<&str> = recipients.iter().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        let payload = names.join(" ");
        let payload = if payload.len() <= MAX_PAYLOAD { payload.as_str() } else { EVERYBODY };
        sqlx::query!("select pg_notify($1, $2)", CHANNEL, payload)
            .execute(connection)
            .await
            .map(drop)
    }
}
