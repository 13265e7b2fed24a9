-- What Jira was last heard to say and what was last sent there, so that an echo is known as one.
-- depends: 0019-traces

-- Each of known, sent and countered maps a field to the fingerprint of its content over there.
-- While `creating_since` is set, an issue may have been opened for the ticket, and nobody knows.
CREATE TABLE IF NOT EXISTS jira_pushes (
    ticket_id uuid CONSTRAINT pk_jira_pushes PRIMARY KEY
        CONSTRAINT fk_jira_pushes_ticket_id REFERENCES tickets (id) ON DELETE CASCADE,
    known jsonb NOT NULL DEFAULT '{}',
    sent jsonb NOT NULL DEFAULT '{}',
    countered jsonb NOT NULL DEFAULT '{}',
    creating_since timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now()
);
