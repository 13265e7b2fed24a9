"""Where the fixtures of all tests come from."""

pytest_plugins = [
    "tests.support.postgres",
    "tests.support.clamd",
    "tests.support.daemon",
    "tests.support.desk",
    "tests.support.jira",
    "tests.support.jobs",
    "tests.support.ollama",
    "tests.support.smtp",
    "tests.support.house",
]
