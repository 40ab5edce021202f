-- What the relay directory of the mixnet said lately, so that a replica that starts knows it. Public: the
-- secrets of an epoch are never in the database.
create table mixnet_document (
    -- The id of the directory's authority.
    network    bytea       not null,
    number     bigint      not null,
    epoch      bigint      not null,
    -- Signed; at most 2 MiB.
    document   bytea       not null,
    learned_at timestamptz not null,

    primary key (network, number),
    constraint mixnet_document_network_is_an_id check (octet_length(network) = 32),
    constraint mixnet_document_is_bounded check (octet_length(document) <= 2097152)
);
