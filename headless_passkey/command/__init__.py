"""The command line ``headless-passkey``: a module for each group of commands."""
