-- What keeps the mirror right whatever order Jira tells things in, and its walks one at a time.
-- depends: 0017-backups

-- An issue's id outlives its key, which changes when it is moved to another project.
CREATE TABLE IF NOT EXISTS jira_issues (
    issue_id text CONSTRAINT pk_jira_issues PRIMARY KEY,
    ticket_id uuid NOT NULL
        CONSTRAINT fk_jira_issues_ticket_id REFERENCES tickets (id) ON DELETE CASCADE,
    CONSTRAINT ux_jira_issues_ticket_id UNIQUE (ticket_id)
);

-- What was deleted over there: `issue/<id>`, `key/<key>`, `comment/<id>`. None of them comes back,
-- so that whatever is told of it later is old.
CREATE TABLE IF NOT EXISTS jira_deleted (
    name text CONSTRAINT pk_jira_deleted PRIMARY KEY,
    deleted_at timestamptz NOT NULL DEFAULT now()
);

-- Whoever holds the row walks through Jira; a holder that died loses it when its time is over.
CREATE TABLE IF NOT EXISTS jira_walks (
    only_row boolean CONSTRAINT pk_jira_walks PRIMARY KEY DEFAULT true,
    owner uuid NOT NULL,
    lease_until timestamptz NOT NULL,
    CONSTRAINT ck_jira_walks_only_row CHECK (only_row)
);
