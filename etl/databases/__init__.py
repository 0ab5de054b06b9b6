"""Databases: what a user names by URL, and one driver for each dialect."""
