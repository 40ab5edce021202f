//! What one sender says to one group at one level, in order.

use fieldpost_delivery::{Held, Progress, release};
use fieldpost_envelope::{LaneSeq, MessageId};
use sqlx::PgConnection;

use crate::store::inbox::{held, lane_number, lock_lane, move_lane};

/// Something said to a group whose turn has come.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub(super) id: MessageId,
    pub(super) gap: bool,
    pub(super) late: bool,
}

impl Turn {
    pub(super) fn unordered(id: MessageId) -> Self {
        Self { id, gap: false, late: false }
    }
}

/// What one sender says to one group at one level, in order; locked until the transaction ends.
pub(super) struct Lane {
    pub(super) group: String,
    pub(super) sender: String,
    pub(super) level: i16,
    pub(super) progress: Progress,
    pub(super) held: Vec<Held>,
    /// The `held` of the database.
    pub(super) stored: Vec<Held>,
}

impl Lane {
    pub(super) async fn lock(
        connection: &mut PgConnection,
        group: &str,
        sender: &str,
        level: i16,
    ) -> sqlx::Result<Self> {
        let progress = lock_lane(connection, sender, &lane_end(group), level).await?;
        let held: Vec<Held> = sqlx::query!(
            r#"
            select message_id, lane_seq as "lane_seq!", after_seq from group_inbound
            where group_id = $1 and sender = $2 and level = $3 and release_at is not null
            "#,
            group,
            sender,
            level,
        )
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| held(row.message_id, row.lane_seq, row.after_seq))
        .collect();
        Ok(Self {
            group: group.to_owned(),
            sender: sender.to_owned(),
            level,
            progress,
            stored: held.clone(),
            held,
        })
    }

    /// Where in the lane something waits that has not had its turn.
    pub(super) fn place_of(&self, id: MessageId) -> Option<Held> {
        self.held.iter().find(|held| held.id == id).copied()
    }

    /// Takes out what has its turn, and keeps what was learnt of the rest.
    pub(super) async fn release(
        &mut self,
        connection: &mut PgConnection,
        due: Option<LaneSeq>,
    ) -> sqlx::Result<Vec<Turn>> {
        let released = release(&mut self.progress, &mut self.held, due);
        for held in self.held.iter().filter(|held| !self.stored.contains(held)) {
            sqlx::query!(
                r#"
                update group_inbound set after_seq = $4
                where message_id = $1 and sender = $2 and group_id = $3
                "#,
                held.id.0,
                self.sender,
                self.group,
                held.after.map(lane_number),
            )
            .execute(&mut *connection)
            .await?;
        }
        let end = lane_end(&self.group);
        move_lane(connection, &self.sender, &end, self.level, self.progress).await?;
        let turn =
            |out: &fieldpost_delivery::Released| Turn { id: out.id, gap: out.gap, late: out.late };
        Ok(released.iter().map(turn).collect())
    }
}

/// How a group is named at the end of a lane; no peer can have that name.
pub(super) fn lane_end(group: &str) -> String {
    format!("group:{group}")
}
