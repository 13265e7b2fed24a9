DROP TABLE IF EXISTS recommendations;

DROP TABLE IF EXISTS daily_stats;

DROP TABLE IF EXISTS workflow_runs;

DROP TABLE IF EXISTS workflow_rules;
