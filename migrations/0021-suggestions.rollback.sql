DROP TABLE IF EXISTS ticket_embeddings;

DROP TABLE IF EXISTS suggestions;
