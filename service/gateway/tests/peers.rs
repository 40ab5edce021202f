//! Peers, tokens, presence, quotas, and what waits for other gateways, over a real Postgres.

#![expect(clippy::unwrap_used, reason = "fixtures may panic as tests do")]

use std::{
    collections::HashSet,
    env, fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use chrono::TimeDelta;
use fieldpost_delivery::Time;
use fieldpost_envelope::PeerId;
use fieldpost_gateway::{
    clock::Clock,
    embedded::EmbeddedPostgres,
    secrets::MasterKey,
    store::{
        Admission, Full, LEASE, MAX_TICKETS, NewPeer, Origin, PeerDefaults, PeerSettings,
        PeerStats, Presence, Quotas, Registered, Renewed, ShownTo, Store, TokenHolder, Waking,
        schema,
    },
};
use sqlx::PgPool;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_name_belongs_to_its_token() {
    let database = Database::start().await;
    let store = &database.store;
    let token = database.register("alice").await;
    assert_eq!(store.token_holder(&token).await.unwrap(), Some(TokenHolder::Peer(id("alice"))));
    assert_eq!(store.token_holder("fp_other").await.unwrap(), None);

    let again = NewPeer { public_key: "new".to_owned(), ..newcomer("alice") };
    let taken = store.register_peer(&again, false, Admission::Granted).await.unwrap();
    assert!(matches!(taken, Registered::Taken));
    assert_eq!(store.public_key(&id("alice")).await.unwrap().unwrap(), "key");

    // Who proves to be the peer may replace its key even where newcomers are refused.
    let replaced = store.register_peer(&again, true, Admission::Refused).await.unwrap();
    assert!(matches!(replaced, Registered::Again(peer) if peer.public_key == "new"));
    assert!(store.token_holder(&token).await.unwrap().is_some());
    let refused = store.register_peer(&newcomer("bob"), true, Admission::Refused).await.unwrap();
    assert!(matches!(refused, Registered::Refused));

    let operator = store.create_operator_token(None).await.unwrap();
    assert_eq!(store.token_holder(&operator).await.unwrap(), Some(TokenHolder::Operator));
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_invite_admits_as_many_as_it_says_however_many_come_at_once() {
    let database = Database::start().await;
    let store = &database.store;
    let expires_at = database.clock.now() + TimeDelta::hours(1);
    let invite = store.create_invite(None, 2, expires_at).await.unwrap().unwrap();
    let admission = Admission::Invite(&invite);
    let names = ["a", "b", "c", "d", "e"].map(newcomer);
    let outcomes = futures_util::future::join_all(
        names.iter().map(|new| store.register_peer(new, false, admission)),
    )
    .await;
    let (admitted, refused): (Vec<_>, Vec<_>) = names
        .iter()
        .zip(&outcomes)
        .partition(|(_, outcome)| matches!(outcome, Ok(Registered::New(..))));
    assert_eq!(admitted.len(), 2);
    assert!(refused.iter().all(|(_, one)| matches!(one, Ok(Registered::InviteInvalid))));

    // A name that is taken costs no use.
    let invite = store.create_invite(None, 1, expires_at).await.unwrap().unwrap();
    let admission = Admission::Invite(&invite);
    let taken = store.register_peer(admitted[0].0, false, admission).await.unwrap();
    assert!(matches!(taken, Registered::Taken));
    let free = store.register_peer(refused[0].0, false, admission).await.unwrap();
    assert!(matches!(free, Registered::New(..)));
    let outcome = store.register_peer(&newcomer("y"), false, admission).await.unwrap();
    assert!(matches!(outcome, Registered::InviteInvalid));

    let invite = store.create_invite(None, 1, expires_at).await.unwrap().unwrap();
    database.pass(TimeDelta::hours(2));
    let late =
        store.register_peer(&newcomer("x"), false, Admission::Invite(&invite)).await.unwrap();
    assert!(matches!(late, Registered::InviteInvalid));
    store.sweep_access().await.unwrap();
    assert_eq!(database.count("invite").await, 0);
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_renewal_ends_the_old_token_and_its_tickets_once_for_each_nonce() {
    let database = Database::start().await;
    let store = &database.store;
    let alice = id("alice");
    let old = database.register("alice").await;
    database.register("bob").await;
    assert!(store.token_holder(&old).await.unwrap().is_some());
    let (ticket, _) = store.create_ticket(&alice).await.unwrap().unwrap();

    let (nonce, _) = store.renewal_nonce(&alice).unwrap();
    assert_eq!(store.check_renewal_nonce(&id("bob"), &nonce), None);
    assert_eq!(store.check_renewal_nonce(&alice, "AAAA"), None);
    let ends = store.check_renewal_nonce(&alice, &nonce).unwrap();
    let changed = store.renew_token(&alice, "other key", &nonce, ends).await.unwrap();
    assert_eq!(changed, Renewed::KeyChanged);
    let Renewed::Token(new) = store.renew_token(&alice, "key", &nonce, ends).await.unwrap() else {
        panic!("the renewal was refused");
    };
    // At once in this process, whatever was remembered.
    assert_eq!(store.token_holder(&old).await.unwrap(), None);
    assert_eq!(store.token_holder(&new).await.unwrap(), Some(TokenHolder::Peer(alice.clone())));
    assert_eq!(store.redeem_ticket(&ticket).await.unwrap(), None);
    let twice = store.renew_token(&alice, "key", &nonce, ends).await.unwrap();
    assert_eq!(twice, Renewed::NonceUsed);

    let (nonce, _) = store.renewal_nonce(&alice).unwrap();
    database.pass(TimeDelta::seconds(61));
    assert_eq!(store.check_renewal_nonce(&alice, &nonce), None);
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_ticket_opens_one_socket_within_30_seconds() {
    let database = Database::start().await;
    let store = &database.store;
    let alice = id("alice");
    database.register("alice").await;
    let (ticket, _) = store.create_ticket(&alice).await.unwrap().unwrap();
    assert_eq!(store.redeem_ticket(&ticket).await.unwrap(), Some(alice.clone()));
    assert_eq!(store.redeem_ticket(&ticket).await.unwrap(), None);
    let (late, _) = store.create_ticket(&alice).await.unwrap().unwrap();
    database.pass(TimeDelta::seconds(31));
    assert_eq!(store.redeem_ticket(&late).await.unwrap(), None);
    for _ in 0..MAX_TICKETS {
        assert!(store.create_ticket(&alice).await.unwrap().is_some());
    }
    assert!(store.create_ticket(&alice).await.unwrap().is_none());
    database.pass(TimeDelta::seconds(31));
    store.sweep_access().await.unwrap();
    assert_eq!(database.count("ticket").await, 0);
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn presence_and_lists_show_each_viewer_what_the_peer_chose() {
    let database = Database::start().await;
    let store = &database.store;
    for (name, shown_to, listed) in [
        ("alice", ShownTo::Everyone, true),
        ("bob", ShownTo::Contacts, true),
        ("carol", ShownTo::Nobody, true),
        ("dave", ShownTo::Contacts, false),
        ("viewer", ShownTo::Contacts, true),
    ] {
        let settings = PeerSettings {
            shown_to: Some(shown_to),
            listed: Some(listed),
            ..PeerSettings::default()
        };
        let new = NewPeer { settings, ..newcomer(name) };
        store.register_peer(&new, false, Admission::Granted).await.unwrap();
        store.presence_opened(&id(name), Uuid::nil()).await.unwrap();
    }
    let seen = async |viewer: Option<&str>| {
        let viewer = viewer.map(id);
        let peers = store.list_peers(viewer.as_ref(), false, "", 10).await.unwrap();
        let online = store.list_peers(viewer.as_ref(), true, "", 10).await.unwrap();
        let online: Vec<_> = online.into_iter().map(|peer| peer.id).collect();
        let visible: Vec<_> = peers.iter().filter(|peer| peer.online == Some(true)).collect();
        assert_eq!(visible.iter().map(|peer| peer.id.clone()).collect::<Vec<_>>(), online);
        assert!(peers.iter().all(|peer| peer.online.is_some() == peer.last_seen_at.is_some()));
        let mirrored = store.list_peers_last_seen_first(viewer.as_ref(), true).await.unwrap();
        assert_eq!(
            mirrored.into_iter().map(|peer| peer.id).collect::<HashSet<_>>(),
            online.iter().cloned().collect()
        );
        peers
            .into_iter()
            .map(|peer| format!("{}{}", peer.id, if peer.online.is_some() { "!" } else { "" }))
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(seen(None).await, "alice! bob carol viewer");
    assert_eq!(seen(Some("viewer")).await, "alice! bob carol viewer!");
    // To have written to somebody shows oneself, not the other.
    database.has_written_to("viewer", "bob").await;
    assert_eq!(seen(Some("viewer")).await, "alice! bob carol viewer!");
    for peer in ["bob", "carol", "dave"] {
        database.has_written_to(peer, "viewer").await;
    }
    assert_eq!(seen(Some("viewer")).await, "alice! bob! carol dave! viewer!");
    assert_eq!(seen(Some("alice")).await, "alice! bob carol viewer");
    database.are_members_of_one_group(&["alice", "dave"]).await;
    assert_eq!(seen(Some("alice")).await, "alice! bob carol dave! viewer");

    let page = store.list_peers(None, false, "bob", 1).await.unwrap();
    assert_eq!(page.iter().map(|peer| peer.id.as_str()).collect::<Vec<_>>(), ["carol"]);

    let audience = async |peer: &str| {
        let mut told = store.presence_audience(&id(peer), 10).await.unwrap();
        told.sort();
        told.iter().map(PeerId::as_str).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(audience("viewer").await, "bob");
    assert_eq!(audience("dave").await, "alice viewer");
    assert_eq!(audience("carol").await, "");
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sockets_speak_as_leases_and_a_stated_word_stands_above_them() {
    let database = Database::start().await;
    let (store, alice) = (&database.store, id("alice"));
    let (here, there) = (Uuid::from_u128(1), Uuid::from_u128(2));
    database.register("alice").await;
    let online = async || {
        let stats = store.peer_stats().await.unwrap();
        assert_eq!(stats.total, 1);
        let peer = store.peer(&alice, Some(&alice)).await.unwrap().unwrap();
        assert_eq!(peer.online, Some(stats.online == 1));
        stats.online == 1
    };
    let came = Presence { online: true, changed: true };
    let went = Presence { online: false, changed: true };
    let still = Presence { online: true, changed: false };
    assert!(!online().await);

    assert_eq!(store.presence_opened(&alice, here).await.unwrap(), came);
    assert_eq!(store.presence_opened(&alice, here).await.unwrap(), still);
    assert_eq!(store.presence_closed(&alice, here).await.unwrap(), still);
    assert!(online().await);
    // Another replica has its own count.
    let elsewhere = database.another_replica().await;
    assert_eq!(elsewhere.presence_opened(&alice, there).await.unwrap(), still);
    assert_eq!(store.presence_closed(&alice, here).await.unwrap(), still);
    assert!(online().await);

    // A lease lasts only while it is renewed.
    database.pass(TimeDelta::from_std(LEASE).unwrap() - TimeDelta::seconds(1));
    elsewhere.refresh_presence(there).await.unwrap();
    database.pass(TimeDelta::seconds(59));
    assert!(online().await);
    assert_eq!(store.expire_presence(10).await.unwrap(), []);
    database.pass(TimeDelta::seconds(2));
    assert!(!online().await);
    assert_eq!(store.expire_presence(10).await.unwrap().as_slice(), std::slice::from_ref(&alice));
    assert_eq!(store.expire_presence(10).await.unwrap(), []);

    // A word holds against open sockets and without any, until the next socket.
    store.presence_opened(&alice, here).await.unwrap();
    assert_eq!(store.state_presence(&alice, false).await.unwrap(), Some(went));
    assert!(!online().await);
    store.refresh_presence(here).await.unwrap();
    assert!(!online().await);
    assert_eq!(store.presence_opened(&alice, here).await.unwrap(), came);
    assert!(online().await);
    assert_eq!(store.state_presence(&alice, true).await.unwrap(), Some(still));
    store.presence_closed(&alice, here).await.unwrap();
    assert_eq!(store.presence_closed(&alice, here).await.unwrap(), still);
    assert!(online().await);
    assert_eq!(store.state_presence(&id("nobody"), true).await.unwrap(), None);
    assert_eq!(store.state_presence(&alice, false).await.unwrap(), Some(went));

    // A registration's word runs out.
    let until = database.clock.now() + TimeDelta::seconds(300);
    let again = NewPeer { online_until: Some(until), ..newcomer("alice") };
    store.register_peer(&again, true, Admission::Granted).await.unwrap();
    assert!(online().await);
    database.pass(TimeDelta::seconds(301));
    assert!(!online().await);
    assert_eq!(store.expire_presence(10).await.unwrap().as_slice(), std::slice::from_ref(&alice));
    assert_eq!(store.peer_stats().await.unwrap(), PeerStats { total: 1, online: 0 });
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn counters_read_exactly_before_and_after_they_are_written() {
    let database = Database::start().await;
    let (store, alice) = (&database.store, id("alice"));
    database.register("alice").await;
    let counts = async || {
        let peer = store.peer(&alice, None).await.unwrap().unwrap();
        (peer.messages_sent, peer.messages_received)
    };
    for _ in 0..3 {
        store.count_sent(&alice);
    }
    store.count_received(&alice);
    store.count_received(&id("stranger"));
    assert_eq!(counts().await, (3, 1));
    store.flush_counters().await.unwrap();
    assert_eq!(counts().await, (3, 1));
    store.count_sent(&alice);
    assert_eq!(counts().await, (4, 1));
    store.flush_counters().await.unwrap();
    let elsewhere = database.another_replica().await;
    let peer = elsewhere.peer(&alice, None).await.unwrap().unwrap();
    assert_eq!((peer.messages_sent, peer.messages_received), (4, 1));

    let known = store.existing_peers(&[alice.clone(), id("stranger")]).await.unwrap();
    assert_eq!(known, HashSet::from([alice.clone()]));
    assert!(elsewhere.peer_exists(&alice).await.unwrap());
    assert!(!elsewhere.peer_exists(&id("stranger")).await.unwrap());
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn at_most_so_many_peers_are_on_the_air() {
    let database = Database::start().await;
    let store = &database.store;
    let defaults = PeerDefaults { on_air: true, shown_to: ShownTo::Contacts, max_on_air: 2 };
    let mut on_air = Vec::new();
    for name in ["alice", "bob", "carol"] {
        let new = NewPeer { defaults, ..newcomer(name) };
        match store.register_peer(&new, false, Admission::Granted).await.unwrap() {
            Registered::New(peer, _) => on_air.push(peer.on_air),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(on_air, [true, true, false]);
    let set = async |name: &str, on_air: bool| {
        let settings = PeerSettings { on_air: Some(on_air), ..PeerSettings::default() };
        store.update_peer(&id(name), &settings, 2).await.unwrap().unwrap().on_air
    };
    assert!(!set("carol", true).await);
    assert!(!set("alice", false).await);
    assert!(set("carol", true).await);
    // Saying it again is no new place.
    assert!(set("carol", true).await);
    let nobody = store.update_peer(&id("nobody"), &PeerSettings::default(), 2).await.unwrap();
    assert!(nobody.is_none());
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn storage_is_counted_from_the_queues_before_anybody_is_refused() {
    let database = Database::start().await;
    // 1 in 10 000 of 100 000 messages.
    let quotas = Quotas::new(database.store.clone(), 0.0001);
    database.owe("bob", "alice", 9).await;
    let reserve =
        async || quotas.check_and_reserve("bob", "alice", 10, Origin::Known).await.unwrap();
    assert_eq!(reserve().await, Ok(()));
    // One that another replica accepted is found only by counting again.
    database.owe("bob", "alice", 1).await;
    let full = reserve().await.unwrap_err();
    assert!(matches!(full, Full::Share { max_messages: 10, .. }), "{full}");
    // Of many, those who have room are charged.
    let both = ["bob".to_owned(), "dave".to_owned()];
    let full = quotas.reserve(&both, "alice", 10).await.unwrap();
    assert_eq!(full.iter().map(Full::recipient).collect::<Vec<_>>(), ["bob"]);
    for _ in 1..10 {
        assert_eq!(quotas.reserve(&both[1..], "alice", 10).await.unwrap(), []);
    }
    assert_eq!(quotas.reserve(&both[1..], "alice", 10).await.unwrap().len(), 1);
    assert_eq!(quotas.check_and_reserve("bob", "carol", 10, Origin::Known).await.unwrap(), Ok(()));
    quotas.release("bob", "alice", 1, 10);
    assert_eq!(reserve().await, Ok(()));
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_dead_process_had_claimed_is_due_again_at_once_and_counts_as_sent() {
    let database = Database::start().await;
    let now = database.clock.now();
    // Claimed, given back for later, and stored at its recipient's gateway.
    for (recipient, claimed, stage) in [("a@gw", true, 1), ("b@gw", false, 0), ("c@gw", true, 2)] {
        sqlx::query(
            "insert into outbox (message_id, sender, recipient, accepted_at, conversation, target, \
             level, priority, size_bytes, stage, next_attempt_at, claimed, expires_at) \
             values (gen_random_uuid(), 'alice', $1, $2, 0, 'gw', 0, 1, 1, $3, $4, $5, $6)",
        )
        .bind(recipient)
        .bind(now)
        .bind(stage as i16)
        .bind(now + TimeDelta::seconds(45))
        .bind(claimed)
        .bind(now + TimeDelta::days(1))
        .execute(&database.pool)
        .await
        .unwrap();
    }
    assert_eq!(database.store.release_claims(now).await.unwrap(), 1);
    let due: Vec<(String, bool)> =
        sqlx::query_as("select recipient, claimed from outbox where next_attempt_at <= $1")
            .bind(now)
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(due, [("a@gw".to_owned(), true)]);

    // Nothing reaches that gateway yet; when it is reached, it is due again.
    assert_eq!(database.store.strand(now).await.unwrap(), 1);
    let mut waking = Waking::new(now, ["gw".to_owned()]);
    database.store.wake_some(&mut waking).await.unwrap();
    let due: Vec<(String, bool, bool)> = sqlx::query_as(
        "select recipient, claimed, has_left from outbox where next_attempt_at <= $1 order by 1",
    )
    .bind(now)
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert_eq!(due, [("a@gw".to_owned(), false, true), ("b@gw".to_owned(), false, false)]);
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_put_off_while_a_backlog_comes_due_keeps_none_of_it_back() {
    let database = Database::start().await;
    let now = database.clock.now();
    let owe = async |messages: i32, accepted_at: Time, claimed: bool, due: Option<Time>| {
        sqlx::query(
            "insert into outbox (message_id, sender, recipient, accepted_at, conversation, target, \
             level, priority, size_bytes, next_attempt_at, claimed, expires_at) \
             select gen_random_uuid(), 'alice', 'bob@gw', $2, 0, 'gw', 0, 1, 1, $4, $3, \
             $2 + interval '1 day' from generate_series(1, $1)",
        )
        .bind(messages)
        .bind(accepted_at)
        .bind(claimed)
        .bind(due)
        .execute(&database.pool)
        .await
        .unwrap();
    };
    owe(512, now - TimeDelta::hours(1), true, Some(now + TimeDelta::seconds(45))).await;
    owe(3000, now, false, None).await;
    // What another replica accepted a moment later, and laid aside before it knew of the reach.
    owe(1, now + TimeDelta::milliseconds(5), false, None).await;
    let mut waking = Waking::new(now, ["gw".to_owned()]);
    database.store.wake_some(&mut waking).await.unwrap();
    sqlx::query("update outbox set claimed = false, next_attempt_at = $1 where claimed")
        .bind(now)
        .execute(&database.pool)
        .await
        .unwrap();
    while !waking.is_over() {
        database.store.wake_some(&mut waking).await.unwrap();
    }
    let waiting: i64 =
        sqlx::query_scalar("select count(*) from outbox where next_attempt_at is null")
            .fetch_one(&database.pool)
            .await
            .unwrap();
    assert_eq!(waiting, 0);
    database.stop().await;
}

/// A Postgres of its own, and the store of one replica.
struct Database {
    server: Option<EmbeddedPostgres>,
    folder: PathBuf,
    pool: PgPool,
    clock: Clock,
    store: Store,
}

impl Database {
    async fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("fieldpost-peers-{}-{number}", process::id()));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o711)).unwrap();
        let data_dir = folder.canonicalize().unwrap().join("data");
        let server =
            tokio::task::spawn_blocking(move || EmbeddedPostgres::start(&data_dir).unwrap())
                .await
                .unwrap();
        schema::migrate(&server.connect_options()).await.unwrap();
        let pool = schema::pool(server.connect_options());
        let clock = Clock::default();
        let store = Store::new(pool.clone(), clock.clone(), MasterKey::ephemeral().unwrap());
        Self { server: Some(server), folder, pool, clock, store }
    }

    async fn another_replica(&self) -> Store {
        Store::new(self.pool.clone(), self.clock.clone(), MasterKey::ephemeral().unwrap())
    }

    async fn register(&self, name: &str) -> String {
        match self.store.register_peer(&newcomer(name), false, Admission::Granted).await.unwrap() {
            Registered::New(_, token) => token,
            other => panic!("{other:?}"),
        }
    }

    fn pass(&self, time: TimeDelta) {
        self.clock.adjust(self.clock.now() + time, std::time::Duration::ZERO);
    }

    async fn has_written_to(&self, peer: &str, other: &str) {
        sqlx::query("insert into contact (peer, other, conversation) values ($1, $2, 0)")
            .bind(peer)
            .bind(other)
            .execute(&self.pool)
            .await
            .unwrap();
    }

    async fn are_members_of_one_group(&self, peers: &[&str]) {
        sqlx::query(
            "with made as (
                insert into peer_group (id, name, created_by, created_at, last_message_at)
                values ('hikers', 'Hikers', $1[1], now(), now())
                returning id
            )
            insert into group_member (group_id, peer, role, joined_at)
            select made.id, peer, 'member', now() from made, unnest($1) as peer",
        )
        .bind(peers)
        .execute(&self.pool)
        .await
        .unwrap();
    }

    async fn owe(&self, recipient: &str, sender: &str, messages: i32) {
        sqlx::query(
            "insert into inbox (
                recipient, position, message_id, sender, accepted_at, conversation, expires_at,
                size_bytes
            )
            select $1, now(), gen_random_uuid(), $2, now(), 0, now() + interval '1 hour', 10
            from generate_series(1, $3)",
        )
        .bind(recipient)
        .bind(sender)
        .bind(messages)
        .execute(&self.pool)
        .await
        .unwrap();
    }

    async fn count(&self, table: &'static str) -> i64 {
        let query = match table {
            "invite" => "select count(*) from invite",
            "ticket" => "select count(*) from ticket",
            other => panic!("{other}"),
        };
        sqlx::query_scalar(query).fetch_one(&self.pool).await.unwrap()
    }

    async fn stop(mut self) {
        self.pool.close().await;
        let server = self.server.take().unwrap();
        tokio::task::spawn_blocking(move || server.stop()).await.unwrap();
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        drop(self.server.take());
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn newcomer(name: &str) -> NewPeer {
    NewPeer {
        id: id(name),
        public_key: "key".to_owned(),
        settings: PeerSettings::default(),
        defaults: PeerDefaults { on_air: false, shown_to: ShownTo::Contacts, max_on_air: 50 },
        online_until: None,
    }
}

fn id(name: &str) -> PeerId {
    name.parse().unwrap()
}
