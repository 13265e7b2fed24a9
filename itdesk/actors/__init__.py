"""What runs: the tasks under the supervisor."""
