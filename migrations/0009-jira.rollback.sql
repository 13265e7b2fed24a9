DROP TABLE IF EXISTS jira_deliveries;

DROP TABLE IF EXISTS jira_accounts;

DROP TABLE IF EXISTS jira_sync_state;
