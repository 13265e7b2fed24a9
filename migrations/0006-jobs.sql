-- Work that must happen: once (jobs), on time (periodic_runs), not twice (idempotency_keys).
-- depends: 0005-attachments

CREATE TABLE IF NOT EXISTS jobs (
    id uuid CONSTRAINT pk_jobs PRIMARY KEY DEFAULT gen_random_uuid(),
    -- Order within a lane; ids made on different machines are not ordered well enough.
    position bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    type text NOT NULL,
    args jsonb NOT NULL DEFAULT '{}',
    lane text,
    dedupe_key text,
    state text NOT NULL DEFAULT 'waiting',
    attempts integer NOT NULL DEFAULT 0,
    epoch bigint NOT NULL DEFAULT 0,
    owner text,
    lease_until timestamptz,
    run_at timestamptz NOT NULL DEFAULT now(),
    last_error text,
    event_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CONSTRAINT ck_jobs_state CHECK (state IN ('waiting', 'leased', 'done', 'failed')),
    CONSTRAINT ck_jobs_leased
        CHECK (state <> 'leased' OR owner IS NOT NULL AND lease_until IS NOT NULL),
    CONSTRAINT ck_jobs_finished
        CHECK ((state IN ('done', 'failed')) = (finished_at IS NOT NULL))
);

CREATE UNIQUE INDEX IF NOT EXISTS ux_jobs_dedupe_key ON jobs (dedupe_key)
    WHERE state IN ('waiting', 'leased');

CREATE INDEX IF NOT EXISTS ix_jobs_unfinished ON jobs (type, position)
    WHERE state IN ('waiting', 'leased');

CREATE INDEX IF NOT EXISTS ix_jobs_leased ON jobs (lease_until) WHERE state = 'leased';

CREATE INDEX IF NOT EXISTS ix_jobs_lane ON jobs (lane, position)
    WHERE lane IS NOT NULL AND state IN ('waiting', 'leased');

CREATE INDEX IF NOT EXISTS ix_jobs_position ON jobs (position);

CREATE INDEX IF NOT EXISTS ix_jobs_failed ON jobs (position) WHERE state = 'failed';

CREATE INDEX IF NOT EXISTS ix_jobs_finished_at ON jobs (finished_at)
    WHERE state IN ('done', 'failed');

CREATE TABLE IF NOT EXISTS periodic_runs (
    name text NOT NULL,
    due_at timestamptz NOT NULL,
    owner text,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    error text,
    CONSTRAINT pk_periodic_runs PRIMARY KEY (name, due_at)
);

CREATE TABLE IF NOT EXISTS idempotency_keys (
    principal text NOT NULL,
    route text NOT NULL,
    key text NOT NULL,
    request_hash bytea NOT NULL,
    state text NOT NULL DEFAULT 'started',
    status integer,
    response bytea,
    content_type text,
    location text,
    etag text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_idempotency_keys PRIMARY KEY (principal, route, key),
    CONSTRAINT ck_idempotency_keys_state CHECK (state IN ('started', 'done'))
);

CREATE INDEX IF NOT EXISTS ix_idempotency_keys_created_at ON idempotency_keys (created_at);
