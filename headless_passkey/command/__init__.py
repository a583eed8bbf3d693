"""``headless-passkey`` on the command line: words in, one line of data out, an exit status."""
