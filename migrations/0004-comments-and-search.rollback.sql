DROP TABLE IF EXISTS ticket_comments;

DROP TRIGGER IF EXISTS tickets_search ON tickets;

DROP FUNCTION IF EXISTS ticket_comments_search();

DROP FUNCTION IF EXISTS tickets_search();

ALTER TABLE tickets DROP COLUMN IF EXISTS search_internal;

ALTER TABLE tickets DROP COLUMN IF EXISTS search;
