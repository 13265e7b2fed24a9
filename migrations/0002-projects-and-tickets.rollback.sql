DROP TABLE IF EXISTS ticket_assignees;

DROP TABLE IF EXISTS tickets;

DROP TABLE IF EXISTS projects;
