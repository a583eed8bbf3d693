"""A private PgBouncer for tests."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.ports import reserved_port
from tests.relay.stores import ON_POSTGRES


@contextlib.asynccontextmanager
async def pooled(uri: str, folder: Path) -> AsyncIterator[str]:
    """PgBouncer in transaction mode before the database at `uri`, with three connections to it; the URI to go through it."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        if ON_POSTGRES:
            pytest.fail("PgBouncer is not installed")
        pytest.skip("PgBouncer is not installed: make test-stores")
    port, settings = reserved_port(), folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host=127.0.0.1 port={urlsplit(uri).port} user=relay\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 100\n"
    )
    as_user = []
    if os.geteuid() == 0:  # which it refuses to run as
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        settings = Path(tempfile.mkdtemp(prefix="pgbouncer-")) / settings.name
        settings.parent.chmod(0o755)
        shutil.copy(folder / settings.name, settings)
    process = await asyncio.create_subprocess_exec(
        *as_user, program, settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            while b"process up" not in (line := await process.stderr.readline()):
                assert line, "PgBouncer has ended"
        yield uri.replace(f":{urlsplit(uri).port}/", f":{port}/")
    finally:
        process.kill()
        await process.communicate()
        if settings.parent != folder:
            shutil.rmtree(settings.parent)
