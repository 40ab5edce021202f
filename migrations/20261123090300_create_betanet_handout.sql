-- What `receive` of the BetaNet surface gave a peer last, until the next call confirms it. Without it
-- a restart would offer the message again at once, or take it for confirmed.
create table betanet_handout (
    peer       text        primary key references peer on delete cascade,
    message_id uuid        not null,
    sender     text        not null,
    seq        bigint      not null,
    -- How often it has been offered, and when last.
    offers     integer     not null,
    offered_at timestamptz not null
);
