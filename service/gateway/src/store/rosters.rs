//! Who is where: our own roster as it was told last, and those of other gateways.
//!
//! A roster speaks for its signer alone: its peers stand under the signer's id, whatever they are
//! called. Whether they mean anything to a bare name is decided by trust, when a name is resolved.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use fieldpost_delivery::Time;
use fieldpost_envelope::{GatewayId, Listing, PeerId, Roster, limits};

use crate::{
    config::Trust,
    store::{Store, access::peer_id, words},
};

/// Peers in one roster; of more, those who registered first are listed.
pub const MAX_PEERS: usize = 10_000;
/// Gateways whose rosters are kept.
pub const MAX_GATEWAYS: usize = 1000;
/// Peers in all these rosters together.
pub const MAX_REMOTE_PEERS: usize = 200_000;
/// What a roster's names may hold together, in bytes; the envelope crate bounds it whole at 4 MiB.
const MAX_NAME_BYTES: usize = 3 << 20;
/// How long a gateway counts as nearby after it was last heard so: by another transport it may be
/// heard between two times as if it were far.
const NEARBY_KEPT: TimeDelta = TimeDelta::hours(1);
/// How exactly it is noted when a gateway was in reach.
const HEARD_EVERY: TimeDelta = TimeDelta::seconds(60);

/// Our own roster as it was told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OwnRoster {
    /// Its number.
    pub number: u64,
    /// The whole, signed.
    pub whole: Vec<u8>,
    /// What leads to it from the one before, signed.
    pub delta: Option<Vec<u8>>,
}

/// What became of a roster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Taken {
    /// It holds from now on.
    Yes,
    /// One as new or newer holds already.
    Old,
    /// It leads on from one that we do not have.
    OtherBase,
    /// There is no room for it.
    NoRoom,
}

/// A gateway whose roster holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RemoteGateway {
    /// Its id.
    pub gateway: GatewayId,
    /// How many peers it lists.
    pub peers: usize,
    /// When its roster came, or when it was last in reach, whichever is later.
    pub heard_at: DateTime<Utc>,
    /// Whether it was found on the local network.
    pub is_nearby: bool,
}

impl RemoteGateway {
    /// Whether its roster resolves names.
    pub fn is_trusted(&self, trust: &Trust) -> bool {
        trust.gateways.contains(&self.gateway) || trust.lan && self.is_nearby
    }
}

impl Store {
    /// The number of our own roster as it was told last, by any replica; 0 before the first.
    pub async fn own_roster_number(&self) -> sqlx::Result<u64> {
        let number =
            sqlx::query_scalar!("select number from own_roster").fetch_optional(&self.pool).await?;
        Ok(number.unwrap_or_default().unsigned_abs())
    }

    /// Our own roster as it was told last, by any replica.
    pub async fn own_roster(&self) -> sqlx::Result<Option<OwnRoster>> {
        let row = sqlx::query!("select number, published, delta from own_roster")
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.and_then(|row| {
            Some(OwnRoster {
                number: row.number.unsigned_abs(),
                whole: row.published?,
                delta: row.delta,
            })
        }))
    }

    /// Makes a new roster of who is listed now, unless `make` finds nothing new in it.
    ///
    /// `make` gets the number that was told last, the roster told last and the peers by name.
    /// Replicas do this one after the other.
    pub async fn renew_own_roster(
        &self,
        make: impl FnOnce(u64, Option<Vec<u8>>, Vec<Listing>) -> Option<OwnRoster> + Send,
    ) -> sqlx::Result<Option<OwnRoster>> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query!("insert into own_roster (number) values (0) on conflict do nothing")
            .execute(&mut *transaction)
            .await?;
        let last = sqlx::query!("select number, published from own_roster for update")
            .fetch_one(&mut *transaction)
            .await?;
        let rows = sqlx::query!(
            r#"
            select id, display_name from peer where listed order by created_at, id limit $1
            "#,
            MAX_PEERS as i64,
        )
        .fetch_all(&mut *transaction)
        .await?;
        let mut room = MAX_NAME_BYTES;
        let mut peers = Vec::with_capacity(rows.len());
        for row in rows {
            let display_name = row.display_name.filter(|name| name.len() <= limits::DISPLAY_NAME);
            let size = row.id.len() + display_name.as_ref().map_or(0, String::len);
            let Some(left) = room.checked_sub(size) else { break };
            room = left;
            peers.push(Listing { peer: peer_id(row.id)?, display_name });
        }
        peers.sort_by(|a, b| a.peer.cmp(&b.peer));
        let Some(next) = make(last.number.unsigned_abs(), last.published, peers) else {
            return Ok(None);
        };
        sqlx::query!(
            "update own_roster set number = $1, published = $2, delta = $3",
            number(next.number)?,
            next.whole,
            next.delta,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Some(next))
    }

    /// Takes in a roster whose signature was verified.
    pub async fn take_roster(
        &self,
        now: Time,
        roster: &Roster,
        is_nearby: bool,
        trust: &Trust,
    ) -> sqlx::Result<Taken> {
        let (id, new_number) = (roster.gateway.to_string(), number(roster.number)?);
        let mut transaction = self.pool.begin().await?;
        // One at a time, so that the limits over all rosters hold.
        sqlx::query!("select pg_advisory_xact_lock(hashtext('fieldpost rosters'))")
            .execute(&mut *transaction)
            .await?;
        let known = sqlx::query!(
            "select gateway, number, peers, heard_at, is_nearby, nearby_at from remote_gateway"
        )
        .fetch_all(&mut *transaction)
        .await?;
        let held = known.iter().find(|row| row.gateway == id);
        if let Some(held) = held.filter(|held| held.number >= new_number) {
            // The same may come over several transports, and any of them may know it to be near.
            if held.number == new_number && is_nearby {
                sqlx::query!(
                    "update remote_gateway set is_nearby = true, nearby_at = $2 where gateway = $1",
                    id,
                    now,
                )
                .execute(&mut *transaction)
                .await?;
                transaction.commit().await?;
            }
            return Ok(Taken::Old);
        }
        if roster
            .base
            .is_some_and(|base| held.is_none_or(|held| u64::try_from(held.number) != Ok(base)))
        {
            return Ok(Taken::OtherBase);
        }
        let was_nearby = held.is_some_and(|held| {
            held.is_nearby && held.nearby_at.is_some_and(|at| at > now - NEARBY_KEPT)
        });
        let newcomer = RemoteGateway {
            gateway: roster.gateway,
            peers: match roster.base {
                Some(_) => held.map_or(0, |held| held.peers.unsigned_abs() as usize),
                None => 0,
            } + roster.peers.len(),
            heard_at: now,
            is_nearby: is_nearby || was_nearby,
        };
        let others: Vec<RemoteGateway> = known
            .iter()
            .filter(|row| row.gateway != id)
            .map(|row| {
                Ok(RemoteGateway {
                    gateway: words::parse(&row.gateway)?,
                    peers: row.peers.unsigned_abs() as usize,
                    heard_at: row.heard_at,
                    is_nearby: row.is_nearby,
                })
            })
            .collect::<sqlx::Result<_>>()?;
        let Some(forgotten) = to_forget(others, &newcomer, trust) else {
            return Ok(Taken::NoRoom);
        };
        if !forgotten.is_empty() {
            let names: Vec<String> = forgotten.iter().map(ToString::to_string).collect();
            sqlx::query!("delete from remote_gateway where gateway = any($1)", &names)
                .execute(&mut *transaction)
                .await?;
        }
        sqlx::query!(
            r#"
            insert into remote_gateway (gateway, number, peers, heard_at, is_nearby, nearby_at)
            values ($1, $2, 0, $3::timestamptz, $4, case when $5::boolean then $3::timestamptz end)
            on conflict (gateway) do update
            set number = excluded.number, heard_at = excluded.heard_at,
                is_nearby = excluded.is_nearby,
                nearby_at = coalesce(excluded.nearby_at, remote_gateway.nearby_at)
            "#,
            id,
            new_number,
            now,
            newcomer.is_nearby,
            is_nearby,
        )
        .execute(&mut *transaction)
        .await?;
        let peers: Vec<String> = roster.peers.iter().map(|one| one.peer.to_string()).collect();
        let names: Vec<Option<String>> =
            roster.peers.iter().map(|one| one.display_name.clone()).collect();
        match roster.base {
            None => sqlx::query!(
                r#"
                delete from remote_peer
                where gateway = $1
                  and not exists (select from unnest($2::text[]) as listed where listed = peer)
                "#,
                id,
                &peers,
            ),
            Some(_) => {
                let removed: Vec<String> = roster.removed.iter().map(PeerId::to_string).collect();
                sqlx::query!(
                    r#"
                    delete from remote_peer
                    where gateway = $1 and peer in (select unnest($2::text[]))
                    "#,
                    id,
                    &removed,
                )
            }
        }
        .execute(&mut *transaction)
        .await?;
        sqlx::query!(
            r#"
            insert into remote_peer (gateway, peer, display_name, listed_at)
            select $1, peer, display_name, $4
            from unnest($2::text[], $3::text[]) as listed (peer, display_name)
            on conflict (gateway, peer) do update set display_name = excluded.display_name
            where remote_peer.display_name is distinct from excluded.display_name
            "#,
            id,
            &peers,
            &names as &[Option<String>],
            now,
        )
        .execute(&mut *transaction)
        .await?;
        let count = sqlx::query_scalar!(
            r#"
            update remote_gateway
            set peers = (select count(*) from remote_peer where remote_peer.gateway = $1)
            where gateway = $1
            returning peers
            "#,
            id,
        )
        .fetch_one(&mut *transaction)
        .await?;
        if count.unsigned_abs() as usize > MAX_PEERS {
            return Ok(Taken::NoRoom);
        }
        transaction.commit().await?;
        Ok(Taken::Yes)
    }

    /// Notes which gateways are in reach of any replica, and forgets those that have been out of
    /// reach and silent since `silent_since`. A gateway in reach tells of every change, so its
    /// roster is as fresh as that.
    pub async fn follow_gateways(&self, now: Time, silent_since: Time) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            update remote_gateway set heard_at = $1
            where heard_at < $2
              and gateway in (select target from reach where expires_at > $1)
            "#,
            now,
            now - HEARD_EVERY,
        )
        .execute(&self.pool)
        .await?;
        sqlx::query!("delete from remote_gateway where heard_at < $1", silent_since)
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// The gateways whose rosters hold, by id.
    pub async fn remote_gateways(&self) -> sqlx::Result<Vec<RemoteGateway>> {
        sqlx::query!(
            "select gateway, peers, heard_at, is_nearby from remote_gateway order by gateway"
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| {
            Ok(RemoteGateway {
                gateway: words::parse(&row.gateway)?,
                peers: row.peers.unsigned_abs() as usize,
                heard_at: row.heard_at,
                is_nearby: row.is_nearby,
            })
        })
        .collect()
    }

    /// Over which transports any replica reaches `gateways` now, all of them if `None`; by gateway.
    pub async fn transports_to(
        &self,
        gateways: Option<&[String]>,
    ) -> sqlx::Result<HashMap<String, Vec<String>>> {
        let rows = sqlx::query!(
            r#"
            select target, array_agg(distinct transport order by transport) as "transports!"
            from reach
            where expires_at > $1 and ($2::text[] is null or target = any($2))
            group by target
            "#,
            self.clock.now(),
            gateways,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| (row.target, row.transports)).collect())
    }
}

/// Which gateways to forget so that a newcomer fits: those not trusted first, and of these those not
/// heard for longest. `None` if only trusted ones could make room for one that is not.
fn to_forget(
    mut others: Vec<RemoteGateway>,
    newcomer: &RemoteGateway,
    trust: &Trust,
) -> Option<Vec<GatewayId>> {
    others.sort_by_key(|one| (one.is_trusted(trust), one.heard_at));
    let mut gateways = others.len() + 1;
    let mut peers = others.iter().map(|one| one.peers).sum::<usize>() + newcomer.peers;
    let mut forgotten = Vec::new();
    for other in others {
        if gateways <= MAX_GATEWAYS && peers <= MAX_REMOTE_PEERS {
            break;
        }
        if other.is_trusted(trust) && !newcomer.is_trusted(trust) {
            return None;
        }
        gateways -= 1;
        peers -= other.peers;
        forgotten.push(other.gateway);
    }
    Some(forgotten)
}

fn number(number: u64) -> sqlx::Result<i64> {
    i64::try_from(number).map_err(|error| sqlx::Error::Encode(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_makes_room_and_nobody_who_is_trusted_makes_it_for_a_stranger() {
        let trust = Trust { lan: true, gateways: [gateway(3)].into() };
        let mut others: Vec<_> = (0..MAX_GATEWAYS as u16).map(|id| remote(id, false)).collect();
        others[1].is_nearby = true;
        assert_eq!(to_forget(others[1..].to_vec(), &remote(2000, false), &trust), Some(vec![]));
        let forgotten = to_forget(others.clone(), &remote(2000, false), &trust);
        assert_eq!(forgotten, Some(vec![gateway(0)]));
        others.iter_mut().for_each(|one| one.is_nearby = true);
        assert_eq!(to_forget(others.clone(), &remote(2000, false), &trust), None);
        let forgotten = to_forget(others, &remote(2000, true), &trust);
        assert_eq!(forgotten, Some(vec![gateway(0)]));
    }

    #[test]
    fn peers_are_bounded_over_all_gateways() {
        let full = (0..20).map(|id| RemoteGateway { peers: MAX_PEERS, ..remote(id, false) });
        let newcomer = RemoteGateway { peers: 1, ..remote(99, false) };
        let forgotten = to_forget(full.collect(), &newcomer, &Trust::default());
        assert_eq!(forgotten, Some(vec![gateway(0)]));
    }

    fn remote(id: u16, is_nearby: bool) -> RemoteGateway {
        let heard_at = DateTime::UNIX_EPOCH + TimeDelta::seconds(i64::from(id));
        RemoteGateway { gateway: gateway(id), peers: 1, heard_at, is_nearby }
    }

    fn gateway(id: u16) -> GatewayId {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        GatewayId::from_bytes(bytes)
    }
}
