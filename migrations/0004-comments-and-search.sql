-- Comments, and the full text that finds a ticket by its own words and by theirs.
-- depends: 0003-journal

CREATE TABLE IF NOT EXISTS ticket_comments (
    id uuid CONSTRAINT pk_ticket_comments PRIMARY KEY DEFAULT gen_random_uuid(),
    ticket_id uuid NOT NULL
        CONSTRAINT fk_ticket_comments_ticket_id REFERENCES tickets (id) ON DELETE CASCADE,
    user_id uuid
        CONSTRAINT fk_ticket_comments_user_id REFERENCES users (id) ON DELETE SET NULL,
    author_name text NOT NULL DEFAULT '',
    body text NOT NULL,
    internal boolean NOT NULL DEFAULT false,
    external_source text,
    external_comment_id text,
    external_updated_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ux_ticket_comments_external
        UNIQUE (ticket_id, external_source, external_comment_id)
);

CREATE INDEX IF NOT EXISTS ix_ticket_comments_ticket_id
    ON ticket_comments (ticket_id, created_at, id);

CREATE INDEX IF NOT EXISTS ix_ticket_comments_user_id ON ticket_comments (user_id, created_at)
    WHERE user_id IS NOT NULL;

-- Two vectors: the words of internal comments must not betray a ticket to those who may not
-- read them.
ALTER TABLE tickets ADD COLUMN IF NOT EXISTS search tsvector;

ALTER TABLE tickets ADD COLUMN IF NOT EXISTS search_internal tsvector;

-- A tsvector holds 1 MiB. A character costs 8 bytes at worst (4 of UTF-8, twice in a hyphenated
-- word or a URL), so 50 000 of the description and 50 000 of the newest comments always fit.
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

-- Naming the column search in an UPDATE (SET search = NULL) asks for a fresh one.
CREATE OR REPLACE TRIGGER tickets_search
    BEFORE INSERT OR UPDATE OF key, title, tags, description, search, search_internal
    ON tickets FOR EACH ROW EXECUTE FUNCTION tickets_search();

CREATE OR REPLACE FUNCTION ticket_comments_search() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tickets SET search = NULL WHERE id IN (OLD.ticket_id, NEW.ticket_id);
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER ticket_comments_search
    AFTER INSERT OR DELETE OR UPDATE OF ticket_id, body, internal
    ON ticket_comments FOR EACH ROW EXECUTE FUNCTION ticket_comments_search();

UPDATE tickets SET search = NULL WHERE search IS NULL;

CREATE INDEX IF NOT EXISTS ix_tickets_search ON tickets USING gin (search);

CREATE INDEX IF NOT EXISTS ix_tickets_search_internal ON tickets USING gin (search_internal);
