DROP TABLE IF EXISTS jira_walks;

DROP TABLE IF EXISTS jira_deleted;

DROP TABLE IF EXISTS jira_issues;
