-- The message that was to say that something is missing expired before anybody saw it: the next one of
-- the lane says so.
alter table lane_in add column owes_gap boolean not null default false;
-- Serves the search for such messages. Few rows: those that say that something is missing before them.
create index inbox_gap on inbox (recipient) where gap;
