-- Rules that really act: since when they do, how far the clock's rules looked, whom webhooks call.
-- depends: 0011-notifications

ALTER TABLE workflow_rules
    -- What happened before this is none of the rule's business.
    ADD COLUMN IF NOT EXISTS active_since timestamptz NOT NULL DEFAULT now(),
    -- For the trigger unchanged_for: {"hours": 48, "status": "blocked"}.
    ADD COLUMN IF NOT EXISTS unchanged_for jsonb,
    -- How far tickets that stayed unchanged were looked at: the last one's updated_at and id.
    ADD COLUMN IF NOT EXISTS scanned_at timestamptz,
    ADD COLUMN IF NOT EXISTS scanned_id uuid;

CREATE INDEX IF NOT EXISTS ix_workflow_rules_position ON workflow_rules (position, id);

ALTER TABLE workflow_runs
    ADD COLUMN IF NOT EXISTS rule_name text NOT NULL DEFAULT '',
    -- The event that somebody outside of the rules caused, from which this run follows.
    ADD COLUMN IF NOT EXISTS root_id uuid,
    ADD COLUMN IF NOT EXISTS depth smallint NOT NULL DEFAULT 0;

CREATE INDEX IF NOT EXISTS ix_workflow_runs_rule_id ON workflow_runs (rule_id, created_at, id);

CREATE INDEX IF NOT EXISTS ix_workflow_runs_created_at ON workflow_runs (created_at);

CREATE INDEX IF NOT EXISTS ix_workflow_runs_root_id ON workflow_runs (root_id) WHERE matched;

CREATE TABLE IF NOT EXISTS workflow_targets (
    id uuid CONSTRAINT pk_workflow_targets PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL,
    url text NOT NULL,
    secret text NOT NULL,
    internal_comments boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ux_workflow_targets_name UNIQUE (name)
);
