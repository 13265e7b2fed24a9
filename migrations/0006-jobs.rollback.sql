DROP TABLE IF EXISTS idempotency_keys;

DROP TABLE IF EXISTS periodic_runs;

DROP TABLE IF EXISTS jobs;
