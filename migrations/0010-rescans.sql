-- Looking at clean files again, and who has to hear of it when one is withdrawn.
-- depends: 0009-jira

-- When the last look at a file began that its verdict rests on.
ALTER TABLE attachments ADD COLUMN IF NOT EXISTS checked_at timestamptz;

CREATE INDEX IF NOT EXISTS ix_attachments_checked
    ON attachments ((coalesce(checked_at, scanned_at))) WHERE scanned_status = 'CLEAN';

-- What the engines called themselves, signatures included, and since when.
CREATE TABLE IF NOT EXISTS scan_signatures (
    engines text CONSTRAINT pk_scan_signatures PRIMARY KEY,
    seen_at timestamptz NOT NULL DEFAULT now()
);

-- Who was given a file, or a link to it: one row for each person and file.
CREATE TABLE IF NOT EXISTS attachment_downloads (
    attachment_id uuid NOT NULL
        CONSTRAINT fk_attachment_downloads_attachment_id
        REFERENCES attachments (id) ON DELETE CASCADE,
    user_id uuid NOT NULL
        CONSTRAINT fk_attachment_downloads_user_id REFERENCES users (id) ON DELETE CASCADE,
    times integer NOT NULL DEFAULT 1,
    first_at timestamptz NOT NULL DEFAULT now(),
    last_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_attachment_downloads PRIMARY KEY (attachment_id, user_id)
);

CREATE INDEX IF NOT EXISTS ix_attachment_downloads_user_id ON attachment_downloads (user_id);
