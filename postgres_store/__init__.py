"""A database in PostgreSQL for stores whose statements SQLite takes too: relay and relying party stand on it (docs/adr/0045).

- `uri`: where a database is, without its password
- `database`: connections, and transactions that are run again where they meet others; statements as PostgreSQL takes them
- `pipeline`: statements whose rows nobody asks for, in one round trip
- `schema`: tables, made and changed by numbered steps
- `copying`: what commands do with a whole store

It knows nothing of what is stored, and raises the errors of the program that uses it.
"""
