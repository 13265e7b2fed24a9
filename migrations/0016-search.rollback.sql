DROP TRIGGER IF EXISTS tickets_counted_gone ON tickets;

DROP TRIGGER IF EXISTS tickets_counted_changed ON tickets;

DROP TRIGGER IF EXISTS tickets_counted_new ON tickets;

DROP FUNCTION IF EXISTS tickets_counted();

DROP TABLE IF EXISTS ticket_counts;

DROP INDEX IF EXISTS ix_tickets_key_prefix;

DROP INDEX IF EXISTS ix_tickets_search_all;

CREATE OR REPLACE FUNCTION tickets_search() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    said text := '';
    said_internally text := '';
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW.search IS NOT NULL
           AND (NEW.key, NEW.title, NEW.tags, NEW.description)
               IS NOT DISTINCT FROM (OLD.key, OLD.title, OLD.tags, OLD.description) THEN
            NEW.search := OLD.search;
            NEW.search_internal := OLD.search_internal;
            RETURN NEW;
        END IF;
        SELECT left(coalesce(string_agg(left(c.body, 50000), ' ') FILTER (WHERE NOT c.internal), ''), 50000),
               left(coalesce(string_agg(left(c.body, 50000), ' ') FILTER (WHERE c.internal), ''), 50000)
          INTO said, said_internally
          FROM (SELECT body, internal FROM ticket_comments WHERE ticket_id = NEW.id
                ORDER BY created_at DESC, id DESC LIMIT 200) AS c;
    END IF;
    NEW.search :=
        setweight(to_tsvector('english',
                  NEW.title || ' ' || NEW.key || ' ' || split_part(NEW.key, '-', 2)), 'A')
        || setweight(to_tsvector('english', array_to_string(NEW.tags, ' ')), 'B')
        || setweight(to_tsvector('english', left(NEW.description, 50000)), 'C')
        || setweight(to_tsvector('english', said), 'D');
    NEW.search_internal := to_tsvector('english', said_internally);
    RETURN NEW;
END
$$;

ALTER TABLE recommendations DROP COLUMN IF EXISTS updated_at;

ALTER TABLE recommendations DROP COLUMN IF EXISTS staff_only;

ALTER TABLE recommendations DROP COLUMN IF EXISTS finding;

DROP TABLE IF EXISTS saved_views;
