"""make_secrets FOLDER: makes the passwords with which the containers of one machine speak to their database and to Valkey.

It writes once, into four folders that are there (volumes), each for one reader; a second run changes nothing:

    database/roles.sql, superuser    for PostgreSQL: two roles with a database each, and the password of its administrator
    relay/pgpass, states             for the relay: a password file of libpq, and the password for Valkey
    relying-party/pgpass             for the relying party
    states/users.acl                 for Valkey: one user with what the relay needs

PostgreSQL and Valkey get what verifies a password and not the password. Those two run as other users, and read by the group.
"""

import base64
import hashlib
import hmac
import os
import secrets
import sys
from pathlib import Path
from typing import Final

ITERATIONS: Final = 4096  # PostgreSQL's own number
RIGHTS: Final = (
    "resetchannels ~hpk:* -@all +get +set +del +exists +hset +hdel +hmget +pexpire +zadd +zrem +zrangebyscore +eval +evalsha"
    " +info +client|setname +cluster|slots +command +readonly"
)


def main() -> None:
    folder = Path(sys.argv[1])
    done = folder / "relay" / "states"  # written last
    if done.exists():
        print("the secrets are there")
        return
    relay, party, states = (secrets.token_urlsafe(32) for _ in range(3))
    write(folder / "database/superuser", secrets.token_urlsafe(32), group=True)
    write(folder / "database/roles.sql", role("relay", relay) + role("passkeys", party), group=True)
    write(folder / "relying-party/pgpass", f"*:*:*:passkeys:{party}\n")
    users = (
        f"user default off\nuser companion-push on #{hashlib.sha256(states.encode()).hexdigest()} {RIGHTS}\n"
    )
    write(folder / "states/users.acl", users, group=True)
    write(folder / "relay/pgpass", f"*:*:*:relay:{relay}\n")
    write(done, states)
    print("the secrets are made")


def role(name: str, password: str) -> str:
    """The SQL that makes a role and its database; it holds a verifier of the password (RFC 5803)."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    stored = hashlib.sha256(_mac(salted, b"Client Key")).digest()
    server = _mac(salted, b"Server Key")
    text = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    verifier = f"SCRAM-SHA-256${ITERATIONS}:{text[0]}${text[1]}:{text[2]}"
    return f"CREATE ROLE {name} LOGIN PASSWORD '{verifier}';\nCREATE DATABASE {name} OWNER {name};\n"


def write(path: Path, text: str, *, group: bool = False) -> None:
    """Write a file for its owner alone, or for its group too. It appears whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(descriptor, 0o640 if group else 0o600)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    new.replace(path)


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, "sha256").digest()


if __name__ == "__main__":
    main()
