-- Every plan is made for an index whatever the statistics say. Those of a queue that changes by a
-- fiftieth every second were taken at every turn of autovacuum, and all plans made anew after that.
alter table inbox set (autovacuum_analyze_scale_factor = 1, autovacuum_analyze_threshold = 20000);
