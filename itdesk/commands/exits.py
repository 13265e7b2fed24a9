"""How commands end: every exit status and what it says, told in one place.

The manual, the README's table and the tests read it from here.
"""

from collections.abc import Mapping

DONE, FAILURE, USAGE = 0, 1, 2
NO_URL = INCOMPLETE = 3
DIFFERENT = 4
INTERRUPTED = 130

# What a status says of any command.
EVERY: Mapping[int, str] = {
    DONE: "done",
    FAILURE: "failed: stderr says why",
    USAGE: "wrong usage or configuration: stderr names every problem",
    INTERRUPTED: "interrupted by Ctrl-C",
}

# What it says of one command besides, or instead.
OF: Mapping[str, Mapping[int, str]] = {
    "serve": {DONE: "ended by SIGTERM or Ctrl-C, after everything in flight was answered"},
    "config check": {USAGE: "the settings are wrong, or something that they name does not work"},
    "doctor": {FAILURE: "a part does not work: stdout names it and the remedy"},
    "db wait": {
        FAILURE: "the database did not answer in time",
        USAGE: "no database is configured",
    },
    "db verify": {
        NO_URL: "no database is configured",
        DIFFERENT: "the schema is not the one that this version needs",
    },
    "scan": {FAILURE: "files still wait: an engine or the storage was out"},
    "storage verify": {DIFFERENT: "there are orphans or missing objects: stdout lists them"},
    "backup make": {
        INCOMPLETE: "made, but files of tickets were missing in the storage: stderr names them"
    },
    "backup verify": {
        FAILURE: "the backup does not restore as it should",
        INCOMPLETE: "it restores; files were missing when it was made: stderr names them",
    },
    "restore": {
        INCOMPLETE: "restored; files were missing when the backup was made: stderr names them"
    },
    "jira import": {
        FAILURE: "Jira is not configured, or its plugin is off",
        USAGE: "some tickets failed, or it was cut short: stderr says why; run it again",
    },
    "jira reconcile": {FAILURE: "Jira was away, or some issues could not be compared"},
}
