DROP TABLE IF EXISTS login_challenges;

DROP TABLE IF EXISTS recovery_codes;

DROP TABLE IF EXISTS second_factors;

DROP TABLE IF EXISTS api_tokens;
