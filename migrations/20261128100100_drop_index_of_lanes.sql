-- `outbox_lane_seq` serves whatever this one did. This one offered itself for finding single deliveries
-- too, by sender and recipient: with thousands stored for one recipient who is away, each look went through
-- all of them. In a transaction of its own, so that it waits for writers without holding them up twice.
drop index outbox_lane;
