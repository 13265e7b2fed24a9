DROP FUNCTION IF EXISTS rows_of(regclass);

DROP INDEX IF EXISTS ix_events_audit;

DROP INDEX IF EXISTS ix_events_about_user;

CREATE OR REPLACE TRIGGER events_append_only
    BEFORE UPDATE OF id, ticket_id, ticket_version, type, actor_id, actor_name, source,
                     changes, data, request_id, cause_id, created_at
    ON events FOR EACH STATEMENT EXECUTE FUNCTION events_refuse();

DROP TRIGGER IF EXISTS events_only_names_change ON events;

DROP FUNCTION IF EXISTS events_refuse_but_names();

DROP TABLE IF EXISTS outbound_pause;

DROP TABLE IF EXISTS backup_runs;
