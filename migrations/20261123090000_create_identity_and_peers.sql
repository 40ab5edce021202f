-- One row: who this deployment is. The key is sealed by the master key; the check value tells a
-- wrong master key from a right one before anything is opened with it.
create table gateway_identity (
    only_row    boolean     primary key default true,
    gateway_id  text        not null,
    sealed_key  bytea       not null,
    check_value bytea       not null,
    -- Part of every inbox cursor; whoever restores the database from a backup renews it.
    epoch       uuid        not null default gen_random_uuid(),
    created_at  timestamptz not null,

    constraint gateway_identity_is_one_row check (only_row)
);

create table peer (
    id                  text        primary key,
    -- The mirrored surfaces show a row id beside the public one.
    row_id              uuid        not null default gen_random_uuid(),
    public_key          text        not null,
    display_name        text,
    -- SHA-256 of the token; the token itself is shown once.
    token_hash          bytea       not null,
    on_air              boolean     not null,
    subscribe_broadcast boolean     not null default true,
    presence_shown_to   text        not null,
    listed              boolean     not null default true,
    messages_sent       bigint      not null default 0,
    messages_received   bigint      not null default 0,
    created_at          timestamptz not null,
    last_seen_at        timestamptz not null,
    -- Presence said by request; null lets the sockets speak. `stated_until` bounds the word of a
    -- registration, which no later event would take back.
    stated_online       boolean,
    stated_until        timestamptz,

    constraint peer_id_is_registrable check (id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$'),
    constraint peer_presence_is_known check (presence_shown_to in ('everyone', 'contacts', 'nobody'))
);
create unique index peer_token_hash on peer (token_hash);
create index peer_last_seen_at on peer (last_seen_at desc, id);
create index peer_broadcast on peer (id) where subscribe_broadcast;
create index peer_on_air on peer (id) where on_air;
create index peer_stated_online on peer (stated_until) where stated_online is not null;

-- Whom a peer has written to: decides who sees its presence, and lists its conversations.
-- `conversation` is the number under which `message` files them.
create table contact (
    peer         text   not null,
    other        text   not null,
    conversation bigint not null,

    primary key (peer, other)
);
create index contact_other on contact (other);

-- Which replica holds open sockets of a peer. A lease: a replica that dies takes nobody online
-- with it for longer than the lease.
create table presence (
    peer       text        not null,
    replica    uuid        not null,
    expires_at timestamptz not null,

    primary key (peer, replica)
);
create index presence_expires_at on presence (expires_at);

create table ticket (
    hash       bytea       primary key,
    peer       text        not null references peer on delete cascade,
    expires_at timestamptz not null
);
create index ticket_peer on ticket (peer);
create index ticket_expires_at on ticket (expires_at);

-- Nonces that were used, until they would have ended anyway; the others are kept nowhere.
create table renewal_nonce (
    hash       bytea       primary key,
    peer       text        not null references peer on delete cascade,
    expires_at timestamptz not null
);
create index renewal_nonce_expires_at on renewal_nonce (expires_at);

create table invite (
    hash       bytea       primary key,
    note       text,
    uses_left  integer     not null,
    created_at timestamptz not null,
    expires_at timestamptz not null,

    constraint invite_uses_are_not_negative check (uses_left >= 0)
);

create table operator_token (
    hash       bytea       primary key,
    note       text,
    created_at timestamptz not null
);

-- What an operator says of relays to come; nothing here claims that one runs.
create table betanet_node (
    id         uuid        primary key,
    node_type  text        not null,
    region     text,
    name       text,
    status     text        not null,
    created_at timestamptz not null
);
-- Clients of the BetaNet surface between register and unregister.
create table betanet_client (
    peer        text        primary key references peer on delete cascade,
    device_name text,
    can_relay   boolean     not null,
    created_at  timestamptz not null
);
