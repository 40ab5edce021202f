-- As `outbox_lane` does, and serves the lane's last predecessor alone. That one offered itself for finding
-- single deliveries too, by sender and recipient: with thousands stored for one recipient who is away, each
-- look went through all of them.
create index outbox_lane_seq on outbox (sender, recipient, level, lane_seq) where lane_seq is not null;
drop index outbox_lane;
