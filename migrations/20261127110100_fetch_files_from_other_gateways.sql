-- What came from another gateway was uploaded by `peer@gateway`, who has no row in `peer`.
alter table file drop constraint file_uploaded_by_fkey;

-- Files that came with messages from elsewhere: where they are fetched from, and how that goes. The
-- row of `file` comes when the other gateway has said how long the file is.
create table remote_file (
    -- Its id here, made of the next two.
    id              text        primary key,
    gateway         text        not null,
    file            text        not null,
    sender          text        not null,
    -- The lowest level of a message that carried it: nothing lower fetches it.
    level           smallint    not null,
    state           text        not null default 'waiting',
    reason          text,
    attempts        integer     not null default 0,
    -- Also the claim, moved forward while it is fetched.
    next_attempt_at timestamptz not null,
    created_at      timestamptz not null,

    constraint remote_file_state_is_known check (state in ('waiting', 'complete', 'failed'))
);
create index remote_file_next_attempt_at on remote_file (next_attempt_at) where state = 'waiting';
create index remote_file_gateway on remote_file (gateway) where state = 'waiting';
create index remote_file_created_at on remote_file (created_at);

-- Who got a message that carries it. In `file_reader` too, once the file has a row.
create table remote_file_reader (
    file_id text not null references remote_file on delete cascade,
    peer    text not null,

    primary key (file_id, peer)
);

-- Which gateways may fetch a file: those to whose peers a message that carries it was sent. Not a
-- reference, since a group's home hands on what it has yet to fetch itself.
create table file_gateway (
    file_id    text        not null,
    gateway    text        not null,
    -- The lowest level of such a message.
    level      smallint    not null,
    granted_at timestamptz not null,

    primary key (file_id, gateway)
);
create index file_gateway_granted_at on file_gateway (granted_at);
