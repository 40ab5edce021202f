-- Where the replica runs that holds a node key, so that its successor there has the key at once after
-- a crash. `placed_by` is whoever wrote that: a replica of an older program takes keys without a
-- word about its place, and keeps no lock by which one sees that it lives.
alter table node_key
    add column place     text,
    add column placed_by uuid;
