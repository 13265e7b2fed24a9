-- Files of tickets, and what is known about their safety.
-- depends: 0004-comments-and-search

CREATE TABLE IF NOT EXISTS attachments (
    id uuid CONSTRAINT pk_attachments PRIMARY KEY DEFAULT gen_random_uuid(),
    ticket_id uuid NOT NULL
        CONSTRAINT fk_attachments_ticket_id REFERENCES tickets (id) ON DELETE CASCADE,
    uploaded_by uuid
        CONSTRAINT fk_attachments_uploaded_by REFERENCES users (id) ON DELETE SET NULL,
    object_key text NOT NULL,
    original_filename text NOT NULL,
    mime text,
    size bigint NOT NULL,
    sha256 text,
    storage text,
    storage_version text,
    scanned_status text NOT NULL DEFAULT 'PENDING',
    scan_reason text,
    scan_engine text,
    scan_signature text,
    scan_attempts integer NOT NULL DEFAULT 0,
    scan_epoch bigint NOT NULL DEFAULT 0,
    scan_lease_until timestamptz,
    scanned_at timestamptz,
    uploaded_at timestamptz,
    reserved_until timestamptz,
    confirmed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ck_attachments_size CHECK (size > 0),
    CONSTRAINT ck_attachments_scanned_status_vals
        CHECK (scanned_status IN ('PENDING', 'CLEAN', 'INFECTED', 'FAILED')),
    CONSTRAINT ck_attachments_clean_is_proved
        CHECK (scanned_status <> 'CLEAN'
               OR (sha256 IS NOT NULL AND scan_engine IS NOT NULL AND scanned_at IS NOT NULL))
);

CREATE INDEX IF NOT EXISTS idx_attachments_ticket_id ON attachments (ticket_id);

CREATE UNIQUE INDEX IF NOT EXISTS ux_attachments_object_key ON attachments (object_key);

CREATE INDEX IF NOT EXISTS idx_attachments_scanned_status ON attachments (scanned_status);

CREATE INDEX IF NOT EXISTS ix_attachments_uploaded_by ON attachments (uploaded_by)
    WHERE uploaded_by IS NOT NULL;

CREATE INDEX IF NOT EXISTS ix_attachments_scan_queue ON attachments (created_at, id)
    WHERE scanned_status = 'PENDING';
