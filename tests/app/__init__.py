"""The bookstore, run as its users run it."""
