"""`python -m itdesk` is `itdesk`."""

from itdesk.cli import main

main()
