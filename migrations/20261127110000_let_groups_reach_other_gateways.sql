-- A member at another gateway is named `peer@gateway` and has no row in `peer`.
alter table group_member drop constraint group_member_peer_fkey;
-- Asked, and not yet a member: `left_at` is set too, so that whoever counts members leaves it out.
alter table group_member
    add column invited_at timestamptz,
    add column invited_by text,
    -- The id of the message that asked.
    add column invitation uuid;

-- What peers of other gateways said to groups of this one, for as long as it may come again: it is
-- checked, put in order and fanned out here, and what is forwarded keeps its sender's signature.
create table group_inbound (
    message_id   uuid        not null,
    sender       text        not null,
    group_id     text        not null references peer_group on delete cascade,
    -- `message`, or what it asks of the group: `group_accept`, `group_decline`, `group_leave`.
    kind         text        not null,
    accepted_at  timestamptz not null,
    conversation bigint      not null,
    digest       bytea       not null,
    gateway      text        not null,
    transport    text        not null,
    level        smallint    not null,
    lane_seq     bigint,
    after_seq    bigint,
    -- Until when it waits for a predecessor; null once it has taken effect.
    release_at   timestamptz,
    -- Whether its sender belonged to the group when it came: then it is fanned out for sure.
    was_member   boolean     not null,
    priority     smallint    not null,
    expires_at   timestamptz not null,
    size_bytes   integer     not null,
    -- The files that come with it, as they are named here.
    file_ids     text[]      not null,
    -- The envelope as the sender's gateway signed it, under the day's data key, until all forwards
    -- have arrived.
    sealed       bytea,

    primary key (message_id, sender, group_id)
);
alter table group_inbound alter column sealed set storage external;
create index group_inbound_held on group_inbound (group_id, sender, level) where release_at is not null;
create index group_inbound_release_at on group_inbound (release_at) where release_at is not null;
create index group_inbound_accepted_at on group_inbound (accepted_at);

-- Groups of other gateways that peers of this one were asked into or have joined. Messages of a
-- group are taken for those alone who have consented; who else is a member only its home knows.
create table remote_group (
    peer       text        not null references peer on delete cascade,
    -- `<id>@<home>`.
    group_id   text        not null,
    name       text        not null,
    invited_by text,
    -- What the invitation travelled at, and what the answer travels at at least.
    level      smallint    not null,
    state      text        not null,
    -- The message that told the home of the state; null for what the home itself said.
    told_by    uuid,
    changed_at timestamptz not null,

    primary key (peer, group_id),
    constraint remote_group_state_is_known check (state in ('invited', 'joined', 'left'))
);
