-- `outbox_target_priority_next_attempt_at` serves whatever this one did, for programs of the version
-- before too. Each index costs an entry at every step of a delivery.
drop index outbox_target_next_attempt_at;
