-- What the desk suggests about tickets, and what people made of it; what texts mean, as vectors.
-- depends: 0020-pushes

CREATE TABLE IF NOT EXISTS suggestions (
    id uuid CONSTRAINT pk_suggestions PRIMARY KEY DEFAULT gen_random_uuid(),
    ticket_id uuid NOT NULL
        CONSTRAINT fk_suggestions_ticket_id REFERENCES tickets (id) ON DELETE CASCADE,
    kind text NOT NULL,
    -- What is proposed: a word, a person's or ticket's id, or a text.
    proposal text NOT NULL,
    -- Where it comes from: rules, or the model's plugin.
    source text NOT NULL,
    confidence real,
    reason text NOT NULL DEFAULT '',
    -- What the ticket was about when it was made: precision is counted by it.
    category text,
    state text NOT NULL DEFAULT 'open',
    -- What an applied one replaced, so that it can be put back.
    replaced text,
    decided_by uuid
        CONSTRAINT fk_suggestions_decided_by REFERENCES users (id) ON DELETE SET NULL,
    decided_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ck_suggestions_kind
        CHECK (kind IN ('priority', 'category', 'assignee', 'duplicate_of', 'reply', 'summary')),
    CONSTRAINT ck_suggestions_state
        CHECK (state IN ('open', 'accepted', 'rejected', 'superseded', 'applied', 'reverted')),
    CONSTRAINT ck_suggestions_confidence CHECK (confidence BETWEEN 0 AND 1),
    CONSTRAINT ck_suggestions_decided
        CHECK ((decided_at IS NULL) = (state IN ('open', 'superseded')))
);

-- Of each kind one is open on a ticket: the newest.
CREATE UNIQUE INDEX IF NOT EXISTS ux_suggestions_open ON suggestions (ticket_id, kind)
    WHERE state = 'open';

CREATE INDEX IF NOT EXISTS ix_suggestions_ticket_id ON suggestions (ticket_id, created_at, id);

CREATE INDEX IF NOT EXISTS ix_suggestions_decided_at ON suggestions (decided_at)
    WHERE decided_at IS NOT NULL;

-- Those that are open or superseded, by their age.
CREATE INDEX IF NOT EXISTS ix_suggestions_undecided ON suggestions (created_at)
    WHERE decided_at IS NULL;

-- What people decided, and what the desk did by itself, which may be far more.
CREATE INDEX IF NOT EXISTS ix_suggestions_kind ON suggestions (kind, source, decided_at)
    WHERE decided_at IS NOT NULL AND state <> 'applied';

CREATE INDEX IF NOT EXISTS ix_suggestions_applied ON suggestions (kind, source, decided_at)
    WHERE decided_at IS NOT NULL AND state = 'applied';

CREATE INDEX IF NOT EXISTS ix_suggestions_decided_by ON suggestions (decided_by)
    WHERE decided_by IS NOT NULL;

-- A ticket's title and description as one model sees them; made again when they change.
CREATE TABLE IF NOT EXISTS ticket_embeddings (
    ticket_id uuid CONSTRAINT pk_ticket_embeddings PRIMARY KEY
        CONSTRAINT fk_ticket_embeddings_ticket_id REFERENCES tickets (id) ON DELETE CASCADE,
    model text NOT NULL,
    -- Of length one; empty when the model makes none of this text.
    vector real[] NOT NULL,
    -- Of the text that it was made from.
    digest text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
