-- How far the mirror of each Jira project has come, and who is who over there.
-- depends: 0008-emails

CREATE TABLE IF NOT EXISTS jira_sync_state (
    project_key text CONSTRAINT pk_jira_sync_state PRIMARY KEY,
    last_synced_at timestamptz,
    last_cursor text,
    last_error text,
    last_run_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS jira_accounts (
    user_id uuid CONSTRAINT pk_jira_accounts PRIMARY KEY
        CONSTRAINT fk_jira_accounts_user_id REFERENCES users (id) ON DELETE CASCADE,
    account_id text NOT NULL,
    email text,
    synced_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ux_jira_accounts_account_id UNIQUE (account_id)
);

CREATE TABLE IF NOT EXISTS jira_deliveries (
    delivery_id text CONSTRAINT pk_jira_deliveries PRIMARY KEY,
    received_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS ix_jira_deliveries_received_at ON jira_deliveries (received_at);
