"""The mirror of Jira: what it says becomes tickets."""
