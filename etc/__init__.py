"""The files that come with itdesk, installed as package data."""
