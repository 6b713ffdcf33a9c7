"""The reference application: a bookstore with users. Start with the README in this folder."""
