"""Several processes of one server on one machine: relay and relying party stand on it (docs/adr/0036, docs/adr/0038).

- `workers`: the first process, which keeps the others, and what it hands over to them

It knows nothing of what is served.
"""
