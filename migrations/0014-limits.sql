-- How much of each limit is used up, and how often a password was guessed wrong.
-- depends: 0013-tokens-and-second-factor

CREATE TABLE IF NOT EXISTS rate_counts (
    subject text CONSTRAINT pk_rate_counts PRIMARY KEY,
    number bigint NOT NULL,
    used integer NOT NULL,
    before integer NOT NULL,
    admitted boolean NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 70);

CREATE INDEX IF NOT EXISTS ix_rate_counts_expires_at ON rate_counts (expires_at);

CREATE TABLE IF NOT EXISTS password_guesses (
    subject bytea CONSTRAINT pk_password_guesses PRIMARY KEY,
    failures integer NOT NULL,
    admitted boolean NOT NULL,
    blocked_until timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);

CREATE INDEX IF NOT EXISTS ix_password_guesses_expires_at ON password_guesses (expires_at);
