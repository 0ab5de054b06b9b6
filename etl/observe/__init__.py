"""Observers: what turns the events of a run into lines. They write nowhere by themselves."""
