-- The members whose storage was full when something was said to a group: they miss it, the others have
-- it when it takes effect.
alter table group_inbound add column full_for text[] not null default '{}';
