-- Tickets, and the projects that number them.
-- depends: 0001-accounts

CREATE TABLE IF NOT EXISTS projects (
    id uuid CONSTRAINT pk_projects PRIMARY KEY DEFAULT gen_random_uuid(),
    key text NOT NULL,
    name text NOT NULL,
    description text NOT NULL DEFAULT '',
    source text NOT NULL DEFAULT 'local',
    next_number bigint NOT NULL DEFAULT 1,
    created_by uuid
        CONSTRAINT fk_projects_created_by REFERENCES users (id) ON DELETE SET NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ux_projects_key UNIQUE (key),
    CONSTRAINT ck_projects_key CHECK (key ~ '^[A-Z][A-Z0-9]{1,9}$'),
    CONSTRAINT ck_projects_source CHECK (source IN ('local', 'jira')),
    CONSTRAINT ck_projects_next_number CHECK (next_number > 0)
);

INSERT INTO projects (id, key, name, description, next_number)
VALUES ('01900000-0000-7000-8000-000000000001', 'TSK', 'Tickets',
        'Where a ticket goes that names no project.', 1001)
ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS tickets (
    id uuid CONSTRAINT pk_tickets PRIMARY KEY DEFAULT gen_random_uuid(),
    number bigint GENERATED ALWAYS AS IDENTITY,
    key text NOT NULL,
    project_id uuid NOT NULL
        CONSTRAINT fk_tickets_project_id REFERENCES projects (id) ON DELETE RESTRICT,
    title text NOT NULL,
    description text NOT NULL DEFAULT '',
    status text NOT NULL DEFAULT 'open',
    priority text NOT NULL DEFAULT 'medium',
    category text,
    department text,
    tags text[] NOT NULL DEFAULT '{}',
    reporter_id uuid
        CONSTRAINT fk_tickets_reporter_id REFERENCES users (id) ON DELETE SET NULL,
    reporter_name text NOT NULL DEFAULT '',
    resolution text,
    predicted_priority text,
    predicted_category text,
    ai_recommendations jsonb,
    first_action_at timestamptz,
    closed_at timestamptz,
    external_source text,
    external_id text,
    external_assignee text,
    external_updated_at timestamptz,
    last_synced_at timestamptz,
    version integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Sorting by a word must follow its meaning, not the alphabet.
    status_rank smallint NOT NULL GENERATED ALWAYS AS (
        CASE status WHEN 'open' THEN 1 WHEN 'triaged' THEN 2 WHEN 'in_progress' THEN 3
                    WHEN 'blocked' THEN 4 WHEN 'closed' THEN 5 END) STORED,
    priority_rank smallint NOT NULL GENERATED ALWAYS AS (
        CASE priority WHEN 'low' THEN 1 WHEN 'medium' THEN 2 WHEN 'high' THEN 3
                      WHEN 'critical' THEN 4 END) STORED,
    CONSTRAINT ux_tickets_number UNIQUE (number),
    CONSTRAINT ux_tickets_key UNIQUE (key),
    CONSTRAINT ux_tickets_external UNIQUE (external_source, external_id),
    CONSTRAINT ck_tickets_title CHECK (char_length(title) BETWEEN 1 AND 255),
    CONSTRAINT ck_tickets_status
        CHECK (status IN ('open', 'triaged', 'in_progress', 'blocked', 'closed')),
    CONSTRAINT ck_tickets_priority
        CHECK (priority IN ('low', 'medium', 'high', 'critical')),
    CONSTRAINT ck_tickets_category
        CHECK (category IN ('infrastructure', 'network', 'security', 'application',
                            'service_request', 'hardware', 'email', 'problem')),
    CONSTRAINT ck_tickets_predicted_priority
        CHECK (predicted_priority IN ('low', 'medium', 'high', 'critical')),
    CONSTRAINT ck_tickets_predicted_category
        CHECK (predicted_category IN ('infrastructure', 'network', 'security', 'application',
                                      'service_request', 'hardware', 'email', 'problem')),
    CONSTRAINT ck_tickets_tags CHECK (cardinality(tags) <= 20),
    CONSTRAINT ck_tickets_version CHECK (version > 0),
    CONSTRAINT ck_tickets_external CHECK ((external_source IS NULL) = (external_id IS NULL))
);

-- One index for each order, then one for each filter in the default order (newest first).
CREATE INDEX IF NOT EXISTS ix_tickets_created_at ON tickets (created_at, id);

CREATE INDEX IF NOT EXISTS ix_tickets_updated_at ON tickets (updated_at, id);

CREATE INDEX IF NOT EXISTS ix_tickets_priority_rank ON tickets (priority_rank, id);

CREATE INDEX IF NOT EXISTS ix_tickets_status_rank ON tickets (status_rank, id);

CREATE INDEX IF NOT EXISTS ix_tickets_unclosed ON tickets (created_at, id)
    WHERE status <> 'closed';

CREATE INDEX IF NOT EXISTS ix_tickets_status ON tickets (status, created_at, id);

CREATE INDEX IF NOT EXISTS ix_tickets_priority ON tickets (priority, created_at, id);

CREATE INDEX IF NOT EXISTS ix_tickets_category ON tickets (category, created_at, id)
    WHERE category IS NOT NULL;

CREATE INDEX IF NOT EXISTS ix_tickets_department ON tickets (department, created_at, id)
    WHERE department IS NOT NULL;

CREATE INDEX IF NOT EXISTS ix_tickets_project_id ON tickets (project_id, created_at, id);

CREATE INDEX IF NOT EXISTS ix_tickets_reporter_id ON tickets (reporter_id, created_at, id);

CREATE INDEX IF NOT EXISTS ix_tickets_tags ON tickets USING gin (tags);

CREATE TABLE IF NOT EXISTS ticket_assignees (
    ticket_id uuid NOT NULL
        CONSTRAINT fk_ticket_assignees_ticket_id REFERENCES tickets (id) ON DELETE CASCADE,
    user_id uuid NOT NULL
        CONSTRAINT fk_ticket_assignees_user_id REFERENCES users (id) ON DELETE CASCADE,
    position integer NOT NULL DEFAULT 0,
    assigned_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_ticket_assignees PRIMARY KEY (ticket_id, user_id)
);

CREATE INDEX IF NOT EXISTS ix_ticket_assignees_user_id ON ticket_assignees (user_id, ticket_id);
