-- One row: what this gateway told others last of who is here. Replicas agree by it: whoever changes it
-- holds the row, and numbers never go back, whatever the clock does.
create table own_roster (
    only_row  boolean primary key default true,
    number    bigint  not null,
    -- Both signed; the delta leads to it from the one before. Null until the first.
    published bytea,
    delta     bytea,

    constraint own_roster_is_one_row check (only_row)
);

-- Serves the roster: whoever came first stays in it when there are too many.
create index peer_listed on peer (created_at, id) where listed;

-- Gateways whose roster was taken in.
create table remote_gateway (
    gateway    text        primary key,
    number     bigint      not null,
    peers      integer     not null,
    heard_at   timestamptz not null,
    -- Whether it was found on the local network, and when last.
    is_nearby  boolean     not null,
    nearby_at  timestamptz
);
create index remote_gateway_heard_at on remote_gateway (heard_at);

create table remote_peer (
    gateway      text        not null references remote_gateway on delete cascade,
    peer         text        not null,
    display_name text,
    listed_at    timestamptz not null,

    primary key (gateway, peer)
);
-- Serves resolving a bare name, and lists.
create index remote_peer_peer on remote_peer (peer, gateway);

-- To which gateway a bare name led when its sender first used it. It stays, whoever claims the name
-- later and whatever becomes of the roster.
create table pin (
    sender    text        not null references peer on delete cascade,
    peer      text        not null,
    gateway   text        not null,
    pinned_at timestamptz not null,

    primary key (sender, peer)
);

-- Messages that wait in the inbox of a name that nobody has yet, and may leave for another gateway
-- that turns out to have it. Written before the message is accepted, so a row may have no message.
create table awaited (
    message_id uuid        not null,
    sender     text        not null,
    peer       text        not null,
    created_at timestamptz not null,
    expires_at timestamptz not null,

    primary key (message_id, sender)
);
create index awaited_peer on awaited (sender, peer);
create index awaited_expires_at on awaited (expires_at);
