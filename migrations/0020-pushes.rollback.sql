DROP TABLE IF EXISTS jira_pushes;
