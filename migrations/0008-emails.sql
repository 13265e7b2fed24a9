-- Mail as rows: what is owed, what went out, what failed and why.
-- depends: 0007-workflows-and-reports

CREATE TABLE IF NOT EXISTS emails (
    id uuid CONSTRAINT pk_emails PRIMARY KEY DEFAULT gen_random_uuid(),
    to_address text NOT NULL,
    subject text NOT NULL,
    body_text text NOT NULL DEFAULT '',
    body_html text,
    kind text NOT NULL,
    status text NOT NULL DEFAULT 'queued',
    attempts integer NOT NULL DEFAULT 0,
    last_error text,
    next_attempt_at timestamptz,
    message_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    sent_at timestamptz,
    CONSTRAINT ux_emails_message_id UNIQUE (message_id),
    CONSTRAINT ck_emails_kind
        CHECK (kind IN ('verification', 'welcome', 'password_reset', 'notification')),
    CONSTRAINT ck_emails_status CHECK (status IN ('queued', 'sent', 'failed', 'skipped'))
);

CREATE INDEX IF NOT EXISTS ix_emails_created_at ON emails (created_at, id);

CREATE INDEX IF NOT EXISTS ix_emails_status ON emails (status, created_at, id);

CREATE INDEX IF NOT EXISTS ix_emails_to_address ON emails (lower(to_address), created_at, id);

CREATE INDEX IF NOT EXISTS ix_emails_queued ON emails (next_attempt_at) WHERE status = 'queued';
