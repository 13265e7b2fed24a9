DROP TABLE IF EXISTS notification_settings;

DROP INDEX IF EXISTS ix_emails_user_created;

DROP INDEX IF EXISTS ux_emails_event_user;

ALTER TABLE emails
    DROP COLUMN IF EXISTS expires_at,
    DROP COLUMN IF EXISTS lines,
    DROP COLUMN IF EXISTS user_id,
    DROP COLUMN IF EXISTS ticket_id,
    DROP COLUMN IF EXISTS event_id;
