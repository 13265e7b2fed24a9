-- Who signs in by which account elsewhere, and the sign-ins that are on their way.
-- depends: 0014-limits

CREATE TABLE IF NOT EXISTS user_identities (
    id uuid CONSTRAINT pk_user_identities PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL
        CONSTRAINT fk_user_identities_user_id REFERENCES users (id) ON DELETE CASCADE,
    provider text NOT NULL,
    issuer text NOT NULL,
    subject text NOT NULL,
    email text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    CONSTRAINT ux_user_identities_subject UNIQUE (issuer, subject),
    CONSTRAINT ux_user_identities_user_id UNIQUE (user_id, issuer)
);

INSERT INTO user_identities (user_id, provider, issuer, subject, email)
SELECT id, 'google', 'https://accounts.google.com', google_id, email
FROM users WHERE google_id IS NOT NULL
ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS oauth_states (
    state_hash bytea CONSTRAINT pk_oauth_states PRIMARY KEY,
    provider text NOT NULL,
    redirect_uri text NOT NULL,
    next text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);

CREATE INDEX IF NOT EXISTS ix_oauth_states_expires_at ON oauth_states (expires_at);
