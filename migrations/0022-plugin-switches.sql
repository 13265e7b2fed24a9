-- Which plugins were switched on or off while the desk works; who has no row is on.
-- depends: 0021-suggestions

-- `turn` rises each time: a daemon that has acted on it does nothing until it rises again.
CREATE TABLE IF NOT EXISTS plugin_switches (
    name text CONSTRAINT pk_plugin_switches PRIMARY KEY,
    enabled boolean NOT NULL,
    turn bigint NOT NULL DEFAULT 1,
    changed_by uuid
        CONSTRAINT fk_plugin_switches_changed_by REFERENCES users (id) ON DELETE SET NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ck_plugin_switches_name CHECK (length(name) BETWEEN 1 AND 100)
);
