create table peer_group (
    id            text        primary key,
    row_id        uuid        not null default gen_random_uuid(),
    name          text        not null,
    description   text,
    created_by    text        not null references peer,
    created_at    timestamptz not null,
    is_active     boolean     not null default true,
    message_count bigint      not null default 0,
    last_message_at timestamptz not null,

    constraint peer_group_id_is_an_id check (id ~ '^[A-Za-z0-9._:-]{1,128}$')
);
-- Serves the limit of groups for each creator.
create index peer_group_created_by on peer_group (created_by) where is_active;

create table group_member (
    group_id      text        not null references peer_group on delete cascade,
    peer          text        not null references peer,
    row_id        uuid        not null default gen_random_uuid(),
    role          text        not null,
    joined_at     timestamptz not null,
    left_at       timestamptz,
    messages_sent bigint      not null default 0,

    primary key (group_id, peer),
    constraint group_member_role_is_known check (role in ('admin', 'moderator', 'member'))
);
create index group_member_peer on group_member (peer, group_id) where left_at is null;

create table file (
    id           text        primary key,
    row_id       uuid        not null default gen_random_uuid(),
    filename     text        not null,
    size_bytes   bigint      not null,
    mime_type    text,
    chunk_size   integer     not null,
    total_chunks integer     not null,
    uploaded_by  text        not null references peer,
    created_at   timestamptz not null,
    completed_at timestamptz,
    -- Of the whole file, once all chunks are there. The file is complete unless the uploader had
    -- declared another; then `completed_at` stays null.
    sha256       bytea,
    declared_sha256 bytea,

    constraint file_size_is_in_bounds check (size_bytes between 1 and 1073741824)
);
create index file_uploaded_by on file (uploaded_by, id) include (size_bytes);
create index file_created_at on file (created_at) include (completed_at, size_bytes);

create table file_chunk (
    file_id     text        not null references file on delete cascade,
    chunk_index integer     not null,
    row_id      uuid        not null default gen_random_uuid(),
    size_bytes  integer     not null,
    sha256      bytea       not null,
    uploaded_at timestamptz not null,
    -- Under the data key of the file's day.
    sealed      bytea       not null,

    primary key (file_id, chunk_index)
);
alter table file_chunk alter column sealed set storage external;

-- Who may read a file besides its uploader: whoever got a message that carries it.
create table file_reader (
    file_id text not null references file on delete cascade,
    peer    text not null,

    primary key (file_id, peer)
);
