-- A data key for each day of messages and file chunks, sealed by the master key. Retention destroys
-- the key with the partition, so backups of the partition are unreadable from then on.
create table partition_key (
    day        date  primary key,
    sealed_key bytea not null
);

-- What was written, for `--retention`. One partition a day, made ahead by the gateway.
-- `conversation` is a hash of both ends, or of the group: it files a talk under one narrow key, and
-- readers check the ends themselves, so a collision costs a row read and nothing else.
create table message (
    accepted_at   timestamptz not null,
    conversation  bigint      not null,
    message_id    uuid        not null,
    sender        text        not null,
    -- As the sender addressed it.
    addressed_to  text        not null,
    -- Everyone it is owed to, as named in `inbox`, `outbox` and `delivery`.
    recipients    text[]      not null,
    expires_at    timestamptz not null,
    priority      smallint    not null,
    min_anonymity smallint    not null,
    is_text       boolean     not null,
    size_bytes    integer     not null,
    -- Header and content under the day's data key.
    sealed        bytea       not null,

    primary key (conversation, accepted_at, message_id, sender)
) partition by range (accepted_at);
-- Sealed bytes do not compress.
alter table message alter column sealed set storage external;

-- What makes a send repeatable: remembered for the longest time to live and a day, whatever the
-- retention of the messages.
create table message_key (
    message_id   uuid        not null,
    sender       text        not null,
    accepted_at  timestamptz not null,
    conversation bigint      not null,
    fingerprint  bytea       not null,
    expires_at   timestamptz not null,

    primary key (message_id, sender)
);
-- Serves forgetting; rows stand almost in this order.
create index message_key_accepted_at on message_key using brin (accepted_at);

-- Owed to peers of this gateway and not yet confirmed by their clients. Narrow: the message itself
-- is read when it is shown.
create table inbox (
    recipient    text        not null,
    -- Where it stands among what waits: the time it could first be shown.
    position     timestamptz not null,
    message_id   uuid        not null,
    sender       text        not null,
    accepted_at  timestamptz not null,
    conversation bigint      not null,
    expires_at   timestamptz not null,
    size_bytes   integer     not null,
    -- Given when it is first shown to a client; in no index, so that giving it is a cheap update.
    seq          bigint,
    gap          boolean     not null default false,
    late         boolean     not null default false,

    primary key (recipient, position, message_id, sender)
) with (
    fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.02
);
create index inbox_expires_at on inbox (expires_at);

create table inbox_head (
    peer          text        primary key,
    last_seq      bigint      not null,
    -- No shown message stands behind it, so confirming need not look further.
    last_position timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- Owed to recipients elsewhere until it has ended.
create table outbox (
    message_id      uuid        not null,
    sender          text        not null,
    -- `peer@gateway`, a phone's 16 hex digits, or `transport:<name>` for a broadcast.
    recipient       text        not null,
    accepted_at     timestamptz not null,
    conversation    bigint      not null,
    -- What has to be in reach: a gateway id, a phone, or `transport:<name>`.
    target          text        not null,
    level           smallint    not null,
    lane_seq        bigint,
    priority        smallint    not null,
    size_bytes      integer     not null,
    -- 0 pending, 1 a transport took charge, 2 the recipient's gateway has it.
    stage           smallint    not null default 0,
    attempts        integer     not null default 0,
    -- Also the claim: moved forward before the attempt, so the work of a replica that dies comes
    -- due again by itself. Null: nobody can act on it until a reach event.
    next_attempt_at timestamptz,
    -- An attempt may be under way: too late to cancel.
    claimed         boolean     not null default false,
    -- A transport took charge once: too late to cancel, even when it is pending again.
    has_left        boolean     not null default false,
    waits_for       text,
    expires_at      timestamptz not null,

    primary key (message_id, sender, recipient)
) with (
    fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.02
);
-- Serves `claim_due`.
create index outbox_target_next_attempt_at on outbox (target, next_attempt_at);
-- Serves the lane's last predecessor.
create index outbox_lane on outbox (sender, recipient, level, lane_seq);
create index outbox_expires_at on outbox (expires_at);

-- Every form in which a delivery may have left: a receipt names the envelope, not the message.
create table envelope (
    digest      bytea       primary key,
    message_id  uuid        not null,
    sender      text        not null,
    recipient   text        not null,
    accepted_at timestamptz not null,
    -- The transport that it was first meant for.
    transport   text        not null,
    -- What its receipts, and the answers to these, must not go below.
    level       smallint    not null
);
create index envelope_accepted_at on envelope (accepted_at);

-- How deliveries ended.
create table delivery (
    accepted_at timestamptz not null,
    message_id  uuid        not null,
    sender      text        not null,
    recipient   text        not null,
    status      text        not null,
    at          timestamptz not null,
    delivered_at timestamptz,
    reason      text,
    -- Its position in the recipient's inbox, for local recipients that were shown it.
    seq         bigint,

    primary key (message_id, sender, recipient, accepted_at)
) partition by range (accepted_at);
-- Serves `read` for positions confirmed before, and confirmations that come after expiry.
create index delivery_unread on delivery (recipient, seq)
    where status = 'delivered' and seq is not null;
create index delivery_lapsed on delivery (recipient, seq)
    where status = 'expired' and seq is not null;

-- What was tried over transports. A local delivery uses none and has no line here.
create table attempt (
    accepted_at timestamptz not null,
    message_id  uuid        not null,
    sender      text        not null,
    recipient   text        not null,
    transport   text        not null,
    started_at  timestamptz not null,
    result      text        not null,
    reason      text
) partition by range (accepted_at);
create index attempt_message on attempt (message_id, sender);

create table lane_out (
    sender    text     not null,
    recipient text     not null,
    level     smallint not null,
    last_seq  bigint   not null,

    primary key (sender, recipient, level)
) with (fillfactor = 50);

create table lane_in (
    sender     text     not null,
    recipient  text     not null,
    level      smallint not null,
    last_shown bigint   not null,

    primary key (sender, recipient, level)
) with (fillfactor = 50);

-- Every message that came from elsewhere, for as long as it may come again, and its receipts' needs.
create table inbound (
    message_id   uuid        not null,
    sender       text        not null,
    recipient    text        not null,
    accepted_at  timestamptz not null,
    conversation bigint      not null,
    -- Null while it is held back for a predecessor.
    position     timestamptz,
    digest       bytea       not null,
    -- Whom receipts go to; empty for a broadcast, which gets none.
    gateway      text        not null,
    transport    text        not null,
    level        smallint    not null,
    lane_seq     bigint,
    after_seq    bigint,
    release_at   timestamptz,
    expires_at   timestamptz not null,
    size_bytes   integer     not null,

    primary key (message_id, sender, recipient)
);
create index inbound_held on inbound (sender, recipient, level, lane_seq) where release_at is not null;
create index inbound_release_at on inbound (release_at) where release_at is not null;
create index inbound_accepted_at on inbound (accepted_at);

-- Receipts owed to other gateways.
create table receipt (
    digest          bytea       not null,
    kind            text        not null,
    gateway         text        not null,
    at              timestamptz not null,
    reason          text,
    level           smallint    not null,
    attempts        integer     not null default 0,
    next_attempt_at timestamptz not null,
    expires_at      timestamptz not null,
    -- Its own digest once it has left: the other gateway answers with that.
    own_digest      bytea,

    primary key (digest, kind)
);
create index receipt_gateway_next_attempt_at on receipt (gateway, next_attempt_at);
create index receipt_own_digest on receipt (own_digest) where own_digest is not null;
create index receipt_expires_at on receipt (expires_at);

-- What each replica can reach, as leases.
create table reach (
    replica    uuid        not null,
    transport  text        not null,
    target     text        not null,
    kind       text        not null,
    quality    real        not null,
    expires_at timestamptz not null,

    primary key (replica, transport, target)
);
