-- As `outbox_lane` does, and serves the lane's last predecessor alone, for programs of the version before
-- too: their questions name a place in the lane. The outbox is as small as the backlog; at a million rows
-- this takes a few seconds.
create index outbox_lane_seq on outbox (sender, recipient, level, lane_seq) where lane_seq is not null;
