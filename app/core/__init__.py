"""Wiring only: each module builds one thing from the settings. Logic found here belongs elsewhere."""
