-- Who receives is counted: with room for that on its page, no index is written.
alter table peer set (fillfactor = 50, autovacuum_vacuum_threshold = 1000);
