"""`python -m itdesk` is `itdesk`."""

import gc


def run() -> None:
    """Run the command line as a process of its own."""
    # Nothing that is imported is garbage: to look for some is a fifth of what a short command does.
    gc.disable()
    from itdesk.cli import main

    main()


if __name__ == "__main__":
    run()
