"""What every program of ours is made of, device, push programs and relying party alike (docs/adr/0070).

The process:

- `early_signals`: the signals that end a program, while it loads
- `log_thread`: stderr that nobody has to wait for
- `memory`: no core dumps

The command line and what it says:

- `command_line`: help, version, lines of log, the line of a failure
- `secret_words`: secrets that are not repeated

Text of others, read strictly and shown safely:

- `names`: the rule for names, and how others' text is shown
- `domains`: the rule for domains and loopback hosts
- `base64url`
- `json_text`: JSON, and byte order marks

Outgoing calls, beside `name_lookups`:

- `proxy`: which proxy the environment names (needs aiohttp)

It knows none of the programs: what is wrong is None, a text or a `ValueError`, and the program raises an error of its own for that.
"""
