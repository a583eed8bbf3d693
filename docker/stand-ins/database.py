"""Starts PostgreSQL as the public image does, as far as the compose files use it: a new database folder is made with the
administrator's password and the SQL of /docker-entrypoint-initdb.d, and then the server takes this process' place.
"""

import os
import shlex
import subprocess
from pathlib import Path

DATA = Path("/var/lib/postgresql/data")
FIRST = Path("/docker-entrypoint-initdb.d")


def main() -> None:
    DATA.chmod(0o700)
    if not (DATA / "PG_VERSION").exists():
        password = os.environ["POSTGRES_PASSWORD_FILE"]
        more = shlex.split(os.environ.get("POSTGRES_INITDB_ARGS", ""))
        run("initdb", "-D", str(DATA), "-U", "postgres", "-E", "UTF8", f"--pwfile={password}", *more)
        with (DATA / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all scram-sha-256\n")
        run("pg_ctl", "-D", str(DATA), "-w", "-o", "-c listen_addresses=''", "start")
        for file in sorted(FIRST.glob("*.sql")):
            run("psql", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-f", str(file))
        run("pg_ctl", "-D", str(DATA), "-w", "-m", "fast", "stop")
    os.execvp("postgres", ["postgres", "-D", str(DATA), "-c", "listen_addresses=*"])


def run(*words: str) -> None:
    subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
