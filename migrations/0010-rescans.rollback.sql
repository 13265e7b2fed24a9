DROP TABLE IF EXISTS attachment_downloads;

DROP TABLE IF EXISTS scan_signatures;

DROP INDEX IF EXISTS ix_attachments_checked;

ALTER TABLE attachments DROP COLUMN IF EXISTS checked_at;
