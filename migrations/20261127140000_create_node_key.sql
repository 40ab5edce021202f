-- The keys of replicas, one for each purpose and replica at a time, sealed by the master key. A lease
-- says whose they are; a replica takes over one that nobody holds, so that it is found under the
-- same node key after a restart. They certify nothing: the gateway's key certifies them for a day.
create table node_key (
    purpose     text        not null,
    node        bytea       not null,
    sealed_seed bytea       not null,
    created_at  timestamptz not null,
    held_by     uuid        not null,
    held_until  timestamptz not null,

    primary key (purpose, node),
    constraint node_key_has_32_bytes check (octet_length(node) = 32)
);
