"""Rows as tables of Arrow, and back. Nothing here loads pyarrow before it is used."""
