-- Rules that act on tickets, numbers about tickets, advice drawn from tickets.
-- depends: 0006-jobs

CREATE TABLE IF NOT EXISTS workflow_rules (
    id uuid CONSTRAINT pk_workflow_rules PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL,
    description text NOT NULL DEFAULT '',
    trigger text NOT NULL,
    conditions jsonb NOT NULL DEFAULT '{}',
    actions jsonb NOT NULL DEFAULT '{}',
    active boolean NOT NULL DEFAULT true,
    position integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ck_workflow_rules_trigger
        CHECK (trigger IN ('ticket_created', 'ticket_updated', 'status_changed',
                           'comment_added', 'unchanged_for')),
    CONSTRAINT ck_workflow_rules_conditions CHECK (jsonb_typeof(conditions) = 'object'),
    CONSTRAINT ck_workflow_rules_actions CHECK (jsonb_typeof(actions) = 'object')
);

CREATE INDEX IF NOT EXISTS ix_workflow_rules_trigger ON workflow_rules (trigger, position, id)
    WHERE active;

-- What a rule did stays known after the rule is gone.
CREATE TABLE IF NOT EXISTS workflow_runs (
    id uuid CONSTRAINT pk_workflow_runs PRIMARY KEY DEFAULT gen_random_uuid(),
    rule_id uuid
        CONSTRAINT fk_workflow_runs_rule_id REFERENCES workflow_rules (id) ON DELETE SET NULL,
    ticket_id uuid
        CONSTRAINT fk_workflow_runs_ticket_id REFERENCES tickets (id) ON DELETE CASCADE,
    event_id uuid NOT NULL,
    matched boolean NOT NULL,
    why jsonb NOT NULL DEFAULT '{}',
    result jsonb,
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ux_workflow_runs_rule_event UNIQUE (rule_id, event_id)
);

CREATE INDEX IF NOT EXISTS ix_workflow_runs_ticket_id ON workflow_runs (ticket_id, created_at);

CREATE INDEX IF NOT EXISTS ix_workflow_runs_event_id ON workflow_runs (event_id);

CREATE TABLE IF NOT EXISTS daily_stats (
    id uuid CONSTRAINT pk_daily_stats PRIMARY KEY DEFAULT gen_random_uuid(),
    date date NOT NULL,
    total integer NOT NULL DEFAULT 0,
    open integer NOT NULL DEFAULT 0,
    triaged integer NOT NULL DEFAULT 0,
    in_progress integer NOT NULL DEFAULT 0,
    blocked integer NOT NULL DEFAULT 0,
    closed integer NOT NULL DEFAULT 0,
    critical_count integer NOT NULL DEFAULT 0,
    high_count integer NOT NULL DEFAULT 0,
    medium_count integer NOT NULL DEFAULT 0,
    low_count integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ux_daily_stats_date UNIQUE (date)
);

CREATE TABLE IF NOT EXISTS recommendations (
    id uuid CONSTRAINT pk_recommendations PRIMARY KEY DEFAULT gen_random_uuid(),
    type text NOT NULL,
    title text NOT NULL,
    description text NOT NULL DEFAULT '',
    related_tickets text[] NOT NULL DEFAULT '{}',
    confidence integer NOT NULL,
    impact text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ck_recommendations_type
        CHECK (type IN ('pattern', 'priority', 'solution', 'workflow')),
    CONSTRAINT ck_recommendations_confidence CHECK (confidence BETWEEN 0 AND 100),
    CONSTRAINT ck_recommendations_impact CHECK (impact IN ('high', 'medium', 'low'))
);

CREATE INDEX IF NOT EXISTS ix_recommendations_created_at ON recommendations (created_at, id);
