-- The one journal: history, audit log, outbox and websocket stream are readings of it.
-- depends: 0002-projects-and-tickets

-- No foreign key to tickets or users: the journal outlives what it speaks of.
CREATE TABLE IF NOT EXISTS events (
    id uuid CONSTRAINT pk_events PRIMARY KEY DEFAULT gen_random_uuid(),
    seq bigint,
    ticket_id uuid,
    ticket_version integer,
    type text NOT NULL,
    actor_id uuid,
    actor_name text NOT NULL DEFAULT '',
    source text NOT NULL DEFAULT 'api',
    changes jsonb NOT NULL DEFAULT '[]',
    data jsonb NOT NULL DEFAULT '{}',
    request_id text,
    cause_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ck_events_source
        CHECK (source IN ('api', 'workflow', 'jira', 'mail', 'cli', 'ai', 'system')),
    CONSTRAINT ck_events_changes CHECK (jsonb_typeof(changes) = 'array')
);

CREATE UNIQUE INDEX IF NOT EXISTS ux_events_seq ON events (seq) WHERE seq IS NOT NULL;

CREATE INDEX IF NOT EXISTS ix_events_unnumbered ON events (created_at, id) WHERE seq IS NULL;

-- Unique: one accepted write is one version is one event.
CREATE UNIQUE INDEX IF NOT EXISTS ux_events_ticket_version ON events (ticket_id, ticket_version)
    WHERE ticket_id IS NOT NULL;

CREATE INDEX IF NOT EXISTS ix_events_actor_id ON events (actor_id, created_at)
    WHERE actor_id IS NOT NULL;

-- The last number given, kept apart from the rows: erasing a deleted ticket's events may take
-- away the highest seq, and a number used twice would hide an event from every reader.
-- The epoch changes when a restored backup makes old positions meaningless.
CREATE TABLE IF NOT EXISTS journal_head (
    only_row boolean CONSTRAINT pk_journal_head PRIMARY KEY DEFAULT true,
    epoch uuid NOT NULL DEFAULT gen_random_uuid(),
    last_seq bigint NOT NULL DEFAULT 0,
    CONSTRAINT ck_journal_head_only_row CHECK (only_row)
);

INSERT INTO journal_head (last_seq) SELECT coalesce(max(seq), 0) FROM events
ON CONFLICT DO NOTHING;

CREATE OR REPLACE FUNCTION events_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'UPDATE' AND current_setting('itdesk.erase', true) = 'on' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'the journal is append-only: % refused', TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'SET LOCAL itdesk.erase = ''on'' lets a transaction delete events.';
END
$$;

-- Every column but seq: naming it in an UPDATE is refused, whatever the value.
CREATE OR REPLACE TRIGGER events_append_only
    BEFORE UPDATE OF id, ticket_id, ticket_version, type, actor_id, actor_name, source,
                     changes, data, request_id, cause_id, created_at
    ON events FOR EACH STATEMENT EXECUTE FUNCTION events_refuse();

CREATE OR REPLACE TRIGGER events_numbered_once
    BEFORE UPDATE OF seq ON events FOR EACH ROW
    WHEN (OLD.seq IS NOT NULL) EXECUTE FUNCTION events_refuse();

CREATE OR REPLACE TRIGGER events_never_deleted
    BEFORE DELETE ON events FOR EACH STATEMENT EXECUTE FUNCTION events_refuse();

CREATE OR REPLACE TRIGGER events_never_truncated
    BEFORE TRUNCATE ON events FOR EACH STATEMENT EXECUTE FUNCTION events_refuse();
