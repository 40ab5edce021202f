-- The keys under which phones know peers of this gateway that are on the air: a seed for each, sealed
-- by the master key. A lease says which replica speaks for the peer, since two that did would break
-- each other's sessions. Taken off the air, a peer keeps its keys, so that phones know it again.
create table air_identity (
    peer        text        primary key references peer on delete cascade,
    sealed_seed bytea       not null,
    created_at  timestamptz not null,
    held_by     uuid,
    held_until  timestamptz
);

-- Phones that were heard, with the keys pinned to their names.
create table phone (
    id             text        primary key,
    noise_key      bytea       not null,
    signing_key    bytea       not null,
    nickname       text        not null,
    hops           smallint    not null,
    -- It has proven its keys inside a session.
    verified       boolean     not null,
    first_heard_at timestamptz not null,
    heard_at       timestamptz not null,

    constraint phone_id_has_16_digits check (id ~ '^[0-9a-f]{16}$'),
    constraint phone_keys_have_32_bytes
        check (octet_length(noise_key) = 32 and octet_length(signing_key) = 32)
);
create index phone_heard_at on phone (heard_at);

-- What a phone calls a private message that came from it: its receipts repeat that.
create table phone_message (
    -- As in `inbound`.
    digest           bytea       primary key,
    phone            text        not null,
    peer             text        not null,
    phone_message_id text        not null,
    came_at          timestamptz not null
);
create index phone_message_came_at on phone_message using brin (came_at);
