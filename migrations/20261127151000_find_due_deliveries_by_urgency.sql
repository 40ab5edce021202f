-- Serves `claim_due` and `next_due_elsewhere`: for each target and priority a narrow range, whose first
-- rows are the next to be claimed, however long the rest is. The outbox is as small as the backlog; at a
-- million rows this takes a few seconds.
create index outbox_target_priority_next_attempt_at on outbox (target, priority, next_attempt_at);
