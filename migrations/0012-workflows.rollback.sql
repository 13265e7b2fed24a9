DROP TABLE IF EXISTS workflow_targets;

DROP INDEX IF EXISTS ix_workflow_runs_root_id;

DROP INDEX IF EXISTS ix_workflow_runs_created_at;

DROP INDEX IF EXISTS ix_workflow_runs_rule_id;

ALTER TABLE workflow_runs
    DROP COLUMN IF EXISTS depth,
    DROP COLUMN IF EXISTS root_id,
    DROP COLUMN IF EXISTS rule_name;

DROP INDEX IF EXISTS ix_workflow_rules_position;

ALTER TABLE workflow_rules
    DROP COLUMN IF EXISTS scanned_id,
    DROP COLUMN IF EXISTS scanned_at,
    DROP COLUMN IF EXISTS unchanged_for,
    DROP COLUMN IF EXISTS active_since;
