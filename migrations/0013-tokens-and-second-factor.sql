-- API tokens for scripts; the second factor with its recovery codes, and sign-ins that wait for it.
-- depends: 0012-workflows

CREATE TABLE IF NOT EXISTS api_tokens (
    id uuid CONSTRAINT pk_api_tokens PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL
        CONSTRAINT fk_api_tokens_user_id REFERENCES users (id) ON DELETE CASCADE,
    name text NOT NULL,
    scope text NOT NULL,
    token_hash bytea NOT NULL,
    expires_at timestamptz,
    last_used_at timestamptz,
    last_used_ip text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ux_api_tokens_token_hash UNIQUE (token_hash),
    CONSTRAINT ux_api_tokens_user_id_name UNIQUE (user_id, name),
    CONSTRAINT ck_api_tokens_name CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT ck_api_tokens_scope CHECK (scope IN ('read', 'write', 'admin'))
);

CREATE INDEX IF NOT EXISTS ix_api_tokens_expires_at ON api_tokens (expires_at);

CREATE TABLE IF NOT EXISTS second_factors (
    user_id uuid CONSTRAINT pk_second_factors PRIMARY KEY
        CONSTRAINT fk_second_factors_user_id REFERENCES users (id) ON DELETE CASCADE,
    secret bytea NOT NULL,
    confirmed_at timestamptz,
    last_step bigint NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    blocked_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS recovery_codes (
    user_id uuid NOT NULL
        CONSTRAINT fk_recovery_codes_user_id REFERENCES second_factors (user_id) ON DELETE CASCADE,
    code_hash bytea NOT NULL,
    CONSTRAINT pk_recovery_codes PRIMARY KEY (user_id, code_hash)
);

CREATE TABLE IF NOT EXISTS login_challenges (
    token_hash bytea CONSTRAINT pk_login_challenges PRIMARY KEY,
    user_id uuid NOT NULL
        CONSTRAINT fk_login_challenges_user_id REFERENCES users (id) ON DELETE CASCADE,
    auth_epoch integer NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS ix_login_challenges_user_id ON login_challenges (user_id);

CREATE INDEX IF NOT EXISTS ix_login_challenges_expires_at ON login_challenges (expires_at);
