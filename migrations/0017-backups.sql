-- Backups, what waits after one was restored, and names that leave the journal with their person.
-- depends: 0016-search

CREATE TABLE IF NOT EXISTS backup_runs (
    id uuid CONSTRAINT pk_backup_runs PRIMARY KEY DEFAULT gen_random_uuid(),
    directory text NOT NULL,
    host text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    missing integer NOT NULL DEFAULT 0,
    error text
);

CREATE INDEX IF NOT EXISTS ix_backup_runs_started_at ON backup_runs (started_at);

-- While there is a row, nothing is told to the outside world: what was owed when the backup was
-- made may have been sent since. Without files_at the restore itself is not finished.
CREATE TABLE IF NOT EXISTS outbound_pause (
    only_row boolean CONSTRAINT pk_outbound_pause PRIMARY KEY DEFAULT true,
    backup_id uuid NOT NULL,
    backup_at timestamptz NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    files_at timestamptz,
    CONSTRAINT ck_outbound_pause_only_row CHECK (only_row)
);

-- What a person is called may go from the journal, and nothing else of it: the same changes of the
-- same fields, the same keys of data.
CREATE OR REPLACE FUNCTION events_refuse_but_names() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('itdesk.erase_person', true) = 'on'
       AND jsonb_array_length(NEW.changes) = jsonb_array_length(OLD.changes)
       AND NOT EXISTS (
           SELECT 1 FROM generate_series(0, jsonb_array_length(OLD.changes) - 1) AS place
           WHERE NEW.changes -> place -> 'field' IS DISTINCT FROM OLD.changes -> place -> 'field')
       AND ARRAY(SELECT jsonb_object_keys(NEW.data) ORDER BY 1)
           = ARRAY(SELECT jsonb_object_keys(OLD.data) ORDER BY 1) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'the journal is append-only: % refused', TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'SET LOCAL itdesk.erase_person = ''on'' lets names be replaced.';
END
$$;

CREATE OR REPLACE TRIGGER events_only_names_change
    BEFORE UPDATE OF actor_name, changes, data
    ON events FOR EACH ROW EXECUTE FUNCTION events_refuse_but_names();

CREATE OR REPLACE TRIGGER events_append_only
    BEFORE UPDATE OF id, ticket_id, ticket_version, type, actor_id, source, request_id, cause_id,
                     created_at
    ON events FOR EACH STATEMENT EXECUTE FUNCTION events_refuse();

-- What the journal says about a person is found by it when they ask, or go.
CREATE INDEX IF NOT EXISTS ix_events_about_user ON events ((data ->> 'user_id'))
    WHERE data ? 'user_id';

CREATE INDEX IF NOT EXISTS ix_events_audit ON events (created_at) WHERE ticket_id IS NULL;

-- How many rows a table has: a backup says it of each, and its proof counts them again.
CREATE OR REPLACE FUNCTION rows_of(counted regclass) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
DECLARE
    n bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s', counted) INTO n;
    RETURN n;
END
$$;
