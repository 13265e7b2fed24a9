-- Who may sign in, and what they hold while signed in.

CREATE TABLE IF NOT EXISTS users (
    id uuid CONSTRAINT pk_users PRIMARY KEY DEFAULT gen_random_uuid(),
    email text NOT NULL,
    password_hash text,
    name text NOT NULL,
    role text NOT NULL DEFAULT 'user',
    department text,
    avatar_url text,
    google_id text,
    is_active boolean NOT NULL DEFAULT true,
    is_verified boolean NOT NULL DEFAULT false,
    auth_epoch integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ux_users_google_id UNIQUE (google_id),
    CONSTRAINT ck_users_role CHECK (role IN ('user', 'agent', 'manager', 'admin')),
    CONSTRAINT ck_users_email CHECK (char_length(email) BETWEEN 3 AND 320)
);

CREATE UNIQUE INDEX IF NOT EXISTS ux_users_email ON users (lower(email));

CREATE TABLE IF NOT EXISTS refresh_tokens (
    id uuid CONSTRAINT pk_refresh_tokens PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL
        CONSTRAINT fk_refresh_tokens_user_id REFERENCES users (id) ON DELETE CASCADE,
    family_id uuid NOT NULL,
    token_hash bytea NOT NULL,
    generation integer NOT NULL DEFAULT 0,
    used_at timestamptz,
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    replaced_by uuid,
    user_agent text,
    ip text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ux_refresh_tokens_token_hash UNIQUE (token_hash)
);

CREATE INDEX IF NOT EXISTS ix_refresh_tokens_user_id ON refresh_tokens (user_id);

CREATE INDEX IF NOT EXISTS ix_refresh_tokens_family_id ON refresh_tokens (family_id);

CREATE INDEX IF NOT EXISTS ix_refresh_tokens_expires_at ON refresh_tokens (expires_at);

CREATE TABLE IF NOT EXISTS verification_tokens (
    token_hash bytea CONSTRAINT pk_verification_tokens PRIMARY KEY,
    user_id uuid NOT NULL
        CONSTRAINT fk_verification_tokens_user_id REFERENCES users (id) ON DELETE CASCADE,
    code_hash bytea NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS ix_verification_tokens_user_id ON verification_tokens (user_id);

CREATE INDEX IF NOT EXISTS ix_verification_tokens_expires_at ON verification_tokens (expires_at);

CREATE TABLE IF NOT EXISTS password_reset_tokens (
    token_hash bytea CONSTRAINT pk_password_reset_tokens PRIMARY KEY,
    user_id uuid NOT NULL
        CONSTRAINT fk_password_reset_tokens_user_id REFERENCES users (id) ON DELETE CASCADE,
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS ix_password_reset_tokens_user_id ON password_reset_tokens (user_id);

CREATE INDEX IF NOT EXISTS ix_password_reset_tokens_expires_at
    ON password_reset_tokens (expires_at);
