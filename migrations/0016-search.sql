-- One vector for those who read internal comments too, views that people keep, advice that is kept
-- up to date, and numbers that need not be counted anew.
-- depends: 0015-identities
-- transactional: false

CREATE TABLE IF NOT EXISTS saved_views (
    id uuid CONSTRAINT pk_saved_views PRIMARY KEY DEFAULT gen_random_uuid(),
    owner_id uuid NOT NULL
        CONSTRAINT fk_saved_views_owner_id REFERENCES users (id) ON DELETE CASCADE,
    name text NOT NULL,
    query jsonb NOT NULL DEFAULT '{}',
    shared boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ux_saved_views_name UNIQUE (owner_id, name),
    CONSTRAINT ck_saved_views_query CHECK (jsonb_typeof(query) = 'object')
);

CREATE INDEX IF NOT EXISTS ix_saved_views_shared ON saved_views (name, id) WHERE shared;

-- What a made recommendation was found by: found again it is the same one. Seeded ones have none.
ALTER TABLE recommendations ADD COLUMN IF NOT EXISTS finding text;

-- Speaks of people or of tickets as a whole: for agents and above.
ALTER TABLE recommendations ADD COLUMN IF NOT EXISTS staff_only boolean NOT NULL DEFAULT false;

ALTER TABLE recommendations
    ADD COLUMN IF NOT EXISTS updated_at timestamptz NOT NULL DEFAULT now();

CREATE UNIQUE INDEX IF NOT EXISTS ux_recommendations_finding ON recommendations (finding)
    WHERE finding IS NOT NULL;

-- As in 0004, but for half as many internal words: agents search both vectors as one, and this one
-- must not exceed 1 MiB either (8 bytes a character at worst).
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
               left(coalesce(string_agg(left(c.body, 50000), ' ') FILTER (WHERE c.internal), ''), 25000)
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

-- The few that were made with more are made again, or no index could hold them.
UPDATE tickets SET search = NULL
WHERE search_internal <> '' AND octet_length(search_internal::text) > 100000;

-- How many tickets there are is the sum of these: each change of a ticket adds its own rows in its
-- own transaction and waits for nobody; now and then they are summed up.
CREATE TABLE IF NOT EXISTS ticket_counts (
    project_id uuid NOT NULL,
    status text NOT NULL,
    priority text NOT NULL,
    department text,
    delta bigint NOT NULL
);

CREATE OR REPLACE FUNCTION tickets_counted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO ticket_counts (project_id, status, priority, department, delta)
        SELECT project_id, status, priority, department, count(*)
        FROM added GROUP BY project_id, status, priority, department;
        RETURN NULL;
    END IF;
    INSERT INTO ticket_counts (project_id, status, priority, department, delta)
    VALUES (OLD.project_id, OLD.status, OLD.priority, OLD.department, -1);
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO ticket_counts (project_id, status, priority, department, delta)
        VALUES (NEW.project_id, NEW.status, NEW.priority, NEW.department, 1);
    END IF;
    RETURN NULL;
END
$$;

-- At once, or a ticket could fall between the first count and the triggers. Writers wait for as
-- long as one look at every ticket takes.
DO $$
BEGIN
    LOCK TABLE tickets IN SHARE ROW EXCLUSIVE MODE;
    CREATE OR REPLACE TRIGGER tickets_counted_new
        AFTER INSERT ON tickets REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION tickets_counted();
    CREATE OR REPLACE TRIGGER tickets_counted_changed
        AFTER UPDATE OF project_id, status, priority, department ON tickets FOR EACH ROW
        WHEN ((OLD.project_id, OLD.status, OLD.priority, OLD.department)
              IS DISTINCT FROM (NEW.project_id, NEW.status, NEW.priority, NEW.department))
        EXECUTE FUNCTION tickets_counted();
    CREATE OR REPLACE TRIGGER tickets_counted_gone
        AFTER DELETE ON tickets FOR EACH ROW EXECUTE FUNCTION tickets_counted();
    DELETE FROM ticket_counts;
    INSERT INTO ticket_counts (project_id, status, priority, department, delta)
    SELECT project_id, status, priority, department, count(*)
    FROM tickets GROUP BY project_id, status, priority, department;
END
$$;

-- The indexes are built beside the desk's work; what a killed run left half built goes first.
DROP INDEX CONCURRENTLY IF EXISTS ix_tickets_search_all;

CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_tickets_search_all
    ON tickets USING gin ((search || search_internal));

DROP INDEX CONCURRENTLY IF EXISTS ix_tickets_key_prefix;

CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_tickets_key_prefix ON tickets (key text_pattern_ops);

-- The planner knows the words of the new index only from here on.
ANALYZE tickets;
