"""No server of others is left behind by a test whose process is killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.programs import ROOT
from tests.relay import redis_servers, stores

REDIS = "from tests.relay.redis_servers import RedisServer; server = RedisServer('redis'); number = server._process.pid"
POSTGRES = """from tests.relay.stores import PostgresServer; server = PostgresServer()
number = int((server.folder / "data/postmaster.pid").read_text().splitlines()[0])"""
KILLED = """
import os, signal
{start}
print(number, server.folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("engine", ["redis", "postgresql"])
def test_a_server_ends_and_its_folder_goes_with_the_process_that_started_it(engine: str) -> None:
    if engine == "redis":
        redis_servers.needed("redis")
    elif not stores.is_installed():
        pytest.skip("PostgreSQL is not installed: make test-stores")
    code = KILLED.format(start=REDIS if engine == "redis" else POSTGRES)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    number, folder = done.stdout.split()
    while Path("/proc", number).exists() or Path(folder).exists():  # bounded by the test's own timeout
        time.sleep(0.01)
