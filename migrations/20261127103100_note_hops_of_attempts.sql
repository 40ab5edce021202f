-- Over how many links the recipient was when an attempt was made, where the transport knows.
alter table attempt add column hops smallint;
