"""itdesk: an on-prem IT service desk in one process."""

__version__ = "1.0.0"
