-- Mail that tells of tickets: what it is about, whom it went to, and who wants which.
-- depends: 0010-rescans

ALTER TABLE emails
    ADD COLUMN IF NOT EXISTS event_id uuid,
    ADD COLUMN IF NOT EXISTS ticket_id uuid,
    ADD COLUMN IF NOT EXISTS user_id uuid,
    ADD COLUMN IF NOT EXISTS lines integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS expires_at timestamptz;

-- One event, one mail a person, however often it is looked at.
CREATE UNIQUE INDEX IF NOT EXISTS ux_emails_event_user ON emails (event_id, user_id)
    WHERE event_id IS NOT NULL AND user_id IS NOT NULL;

CREATE INDEX IF NOT EXISTS ix_emails_user_created ON emails (user_id, created_at)
    WHERE user_id IS NOT NULL;

CREATE TABLE IF NOT EXISTS notification_settings (
    user_id uuid CONSTRAINT pk_notification_settings PRIMARY KEY
        CONSTRAINT fk_notification_settings_user_id REFERENCES users (id) ON DELETE CASCADE,
    ticket_created boolean NOT NULL DEFAULT true,
    ticket_assigned boolean NOT NULL DEFAULT true,
    status_changed boolean NOT NULL DEFAULT true,
    comment_added boolean NOT NULL DEFAULT true,
    file_recalled boolean NOT NULL DEFAULT true,
    updated_at timestamptz NOT NULL DEFAULT now()
);
