DROP TABLE IF EXISTS password_guesses;

DROP TABLE IF EXISTS rate_counts;
