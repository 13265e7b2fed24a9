DROP TABLE IF EXISTS password_reset_tokens;

DROP TABLE IF EXISTS verification_tokens;

DROP TABLE IF EXISTS refresh_tokens;

DROP TABLE IF EXISTS users;
