"""Where the fixtures of all tests come from."""

pytest_plugins = [
    "tests.support.postgres",
    "tests.support.clamd",
    "tests.support.daemon",
    "tests.support.desk",
    "tests.support.jobs",
    "tests.support.smtp",
    "tests.support.house",
]
