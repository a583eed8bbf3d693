"""``--workers``: real processes that share a socket and a store, are killed, and are replaced under load."""

import asyncio
import fcntl
import os
import re
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time

import aiohttp
import pytest
from certificates import Certificate

from tests.programs import ROOT, Program, run, running
from tests.rp.authenticator_double import create, get
from tests.rp.test_program import Visitor

PATIENCE = 60.0  # seconds; only when something is broken
OPTIONS = "/webauthn/authentication/options"
BACK = 0.01  # seconds between two looks at a process


@dataclass
class Served:
    """A relying party of two workers."""

    program: Program
    url: str

    async def pid(self, place: int, *, but: int = 0) -> int:
        """The process in a place, as soon as it is another one than `but`."""
        while True:
            found = [int(one) for one in re.findall(rf"worker {place} is process (\d+)", self._said)]
            if found and found[-1] != but:
                return found[-1]
            await asyncio.sleep(BACK)

    @property
    def _said(self) -> str:
        return self.program._heard.decode()


@asynccontextmanager
async def served(folder: Path, *more: str, workers: int = 2) -> AsyncIterator[Served]:
    words = ("serve", "--listen", "127.0.0.1:0", "--store", str(folder / "store"), "--workers", str(workers))
    (folder / "tmp").mkdir()
    environment = {"TMPDIR": str(folder / "tmp")}
    async with (
        asyncio.timeout(PATIENCE),
        running("relying_party", *words, *more, environment=environment) as program,
    ):
        yield Served(program, await program.line())


def state(pid: int) -> str | None:
    """A process' state as /proc has it; None when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):  # the second when it ends between opening and reading
        return None


def left_in(folder: Path) -> list[str]:
    """The folders of first processes."""
    return [one.name for one in folder.iterdir() if one.name.startswith("relying-party-")]


async def gone(*pids: int) -> None:
    while any(state(pid) not in (None, "Z") for pid in pids):  # noqa: ASYNC110  /proc tells by being looked at
        await asyncio.sleep(BACK)


@asynccontextmanager
async def stopped(pid: int) -> AsyncIterator[None]:
    """While a process stands still, another one accepts all connections."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while state(pid) != "T":  # noqa: ASYNC110
            await asyncio.sleep(BACK)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def clients() -> aiohttp.ClientSession:
    """A client with a new connection for each request."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))


async def count(http: aiohttp.ClientSession, metrics: str, name: str) -> float:
    async with http.get(metrics) as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"relying_party_{name}"))


async def test_what_begins_at_one_worker_ends_at_the_other_and_no_proof_is_taken_twice(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, "--metrics", "127.0.0.1:0") as party, clients() as http:
        first, second = await party.pid(1), await party.pid(2)
        visitor = Visitor(party.url, http)
        async with stopped(second):
            ceremony, options = await visitor.begin("registration", user_name="ada")
        async with stopped(first):
            passkey, response = create(options, party.url)
            body = {"ceremony": ceremony, "response": response}
            assert (await visitor.post("/webauthn/registration/result", body))[0] == 201
            ceremony, options = await visitor.begin("authentication")
        body = {"ceremony": ceremony, "response": get(passkey, options, party.url)}
        async with stopped(second):
            status, session = await visitor.post("/webauthn/authentication/result", body)
            assert (status, session["user"]["name"]) == (200, "ada")
            proof = visitor._key.proof("POST", party.url + OPTIONS, time(), nonce=visitor._nonce)
            async with http.post(party.url + OPTIONS, json={}, headers={"DPoP": proof}) as answer:
                assert answer.status == 200
        async with stopped(first):
            assert (await visitor.post("/webauthn/authentication/result", body))[0] == 410
            async with http.post(party.url + OPTIONS, json={}, headers={"DPoP": proof}) as answer:
                assert answer.status == 401
                assert (await answer.json(content_type=None))["type"].endswith(":proof-invalid")
        begun = [
            await count(http, (await party.program.heard(rf"metrics of worker {place} at (\S+)"))[1],
                        'ceremonies_total{kind="device",outcome="begun",purpose="sign-in"}')
            for place in (1, 2)
        ]  # fmt: skip
        assert begun == [1, 1]


@pytest.mark.threat("T17")
async def test_the_workers_share_a_limit_out(tmp_path: Path) -> None:
    async with served(tmp_path, "--requests-per-minute", "9") as party, clients() as http:
        for place in (1, 2):
            async with stopped(await party.pid(3 - place)):
                statuses = []
                for _ in range(6):
                    async with http.post(
                        party.url + OPTIONS, json={}, headers={"Origin": party.url}
                    ) as answer:
                        statuses.append(answer.status)
            assert statuses == [200] * 5 + [429]


async def test_a_killed_worker_takes_no_ceremony_with_it_and_another_takes_its_place(tmp_path: Path) -> None:
    async with served(tmp_path) as party, clients() as http:
        first, second = await party.pid(1), await party.pid(2)
        visitor = Visitor(party.url, http)
        async with stopped(second):
            ceremony, options = await visitor.begin("registration", user_name="ada")
        os.kill(first, signal.SIGKILL)
        await gone(first)
        passkey, response = create(options, party.url)
        body = {"ceremony": ceremony, "response": response}
        assert (await visitor.post("/webauthn/registration/result", body))[0] == 201
        await party.program.heard("worker 1 has ended, status -9")
        await party.pid(1, but=first)
        async with stopped(second):
            ceremony, options = await visitor.begin("authentication")
            body = {"ceremony": ceremony, "response": get(passkey, options, party.url)}
            assert (await visitor.post("/webauthn/authentication/result", body))[0] == 200


class Load:
    """Clients that send one request after the other, each a ceremony that begins; what fails is kept."""

    def __init__(self, url: str) -> None:
        self.url, self.failures, self.answers = url, list[str](), list[int]()

    async def client(self, number: int, http: aiohttp.ClientSession) -> None:
        self.answers.append(0)
        while True:
            try:
                async with http.post(self.url + OPTIONS, json={}, headers={"Origin": self.url}) as answer:
                    await answer.read()
                    if answer.status != 200:
                        self.failures.append(f"client {number}: {answer.status}")
            except aiohttp.ClientError as error:
                self.failures.append(f"client {number}: {error!r}")
            self.answers[number] += 1

    async def more(self, answers: int) -> None:
        """Wait until each client has so many answers more."""
        wanted = [before + answers for before in self.answers]
        while any(now < most for now, most in zip(self.answers, wanted, strict=True)):  # noqa: ASYNC110
            await asyncio.sleep(BACK)


async def test_all_workers_are_replaced_under_load_without_a_failed_request(
    tmp_path: Path, loopback_certificate: Certificate
) -> None:
    words = ("--requests-per-minute", "1000000", "--cert", str(loopback_certificate.cert),
             "--key", str(loopback_certificate.key))  # fmt: skip
    trust = ssl.create_default_context(cafile=loopback_certificate.ca)
    async with served(tmp_path, *words) as party, AsyncExitStack() as stack:
        load = Load(party.url)
        tasks = []
        for number in range(6):
            connector = aiohttp.TCPConnector(ssl=trust, force_close=number % 2 == 0)
            http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            tasks.append(asyncio.create_task(load.client(number, http)))
        await asyncio.sleep(0)
        before = [await party.pid(1), await party.pid(2)]
        await load.more(3)
        for _ in range(2):
            party.program.process.send_signal(signal.SIGUSR1)
            after = [await party.pid(1, but=before[0]), await party.pid(2, but=before[1])]
            await load.more(3)
            await gone(*before)
            before = after
        await load.more(3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert load.failures == []
        assert party._said.count("all workers are replaced") == 2
        assert "has ended" not in party._said
        assert await party.program.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_all_ends_with_the_first_process(tmp_path: Path, number: signal.Signals) -> None:
    async with served(tmp_path) as party:
        pids = await party.pid(1), await party.pid(2)
        assert len(left_in(tmp_path / "tmp")) == 1
        assert await party.program.end(number) == 0
        assert [state(pid) for pid in pids] == [None, None]
        assert left_in(tmp_path / "tmp") == []


async def test_a_cleaner_of_old_files_leaves_what_the_workers_share(tmp_path: Path) -> None:
    async with served(tmp_path):
        (folder,) = (tmp_path / "tmp").iterdir()
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with pytest.raises(
                BlockingIOError
            ):  # as systemd-tmpfiles looks whether somebody has it (tmpfiles.d(5))
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)


async def test_no_worker_outlives_a_killed_first_process(tmp_path: Path) -> None:
    async with served(tmp_path) as party:
        pids = await party.pid(1), await party.pid(2)
        party.program.process.kill()
        await gone(*pids)


async def test_a_replacement_stays_with_the_store_that_is_locked(tmp_path: Path) -> None:
    config, words = tmp_path / "rp.toml", ("--config", str(tmp_path / "rp.toml"))
    config.write_text("[serve]\nrp-name = 'One'\n")
    async with served(tmp_path, *words) as party, clients() as http:
        before = await party.pid(1), await party.pid(2)
        config.write_text("[serve]\nrp-name = 'Two'\nshared-store = true\nworkers = 1\n")
        party.program.process.send_signal(signal.SIGUSR1)
        await party.program.heard("all workers are replaced")
        await gone(*before)
        async with http.post(
            f"{party.url}/webauthn/registration/options",
            json={"user_name": "ada"},
            headers={"Origin": party.url},
        ) as answer:
            assert (await answer.json())["publicKey"]["rp"]["name"] == "Two"
        status, _, _ = await run("relying_party", "serve", "--listen", "127.0.0.1:0", "--store",
                                 str(tmp_path / "store"), "--shared-store")  # fmt: skip
        assert status == 4


@pytest.mark.threat("T11")
async def test_a_worker_imports_nothing_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "relying_party").mkdir()
    (tmp_path / "relying_party" / "__init__.py").write_text("raise SystemExit(99)")
    (tmp_path / "msgspec.py").write_text("raise SystemExit(98)")
    start = (
        "import sys; sys.path.append(sys.argv.pop(1)); from relying_party.cli import main; sys.exit(main())"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", start, str(ROOT), "serve", "--listen", "127.0.0.1:0", "--workers", "2",
        cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            assert (await process.stdout.readline()).startswith(b"http://localhost:")
            process.terminate()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_replacement_that_cannot_begin_leaves_the_workers_that_serve(
    tmp_path: Path,
) -> None:
    (tmp_path / "rp.toml").write_text("[serve]\nprf = true\n")
    async with served(tmp_path, "--config", str(tmp_path / "rp.toml")) as party, clients() as http:
        first, second = await party.pid(1), await party.pid(2)
        (tmp_path / "rp.toml").write_text("[serve]\nnonsense = true\n")
        party.program.process.send_signal(signal.SIGUSR1)
        await party.program.heard("the workers are not all replaced: a new one has ended with status 2")
        assert "unknown setting 'nonsense'" in party._said
        assert (state(first), state(second)) != (None, None)
        async with http.get(f"{party.url}/livez") as answer:
            assert answer.status == 200


async def test_the_store_of_workers_is_theirs(tmp_path: Path) -> None:
    async with served(tmp_path):
        for more in ((), ("--shared-store",), ("--workers", "2")):
            store = ("--store", str(tmp_path / "store"))
            status, _, stderr = await run("relying_party", "serve", "--listen", "127.0.0.1:0", *store, *more)
            assert status == 4
            assert "another relying party is using the store" in stderr


@pytest.mark.parametrize(
    ("words", "ends", "says"),
    [
        (["--workers", "0"], 2, "from 1 to 64"),
        (["--workers", "65"], 2, "from 1 to 64"),
        (["--workers", "2", "--rp-id", "no domain"], 2, "not an RP ID"),
        (["--workers", "2", "--metrics", "127.0.0.1:65535"], 2, "no 2 ports from 65535 on"),
        (["--workers", "2", "--cert", "no.pem", "--key", "no.pem"], 10, "cannot read no.pem"),
        (["--workers", "2", "--store", "no/such/folder/file"], 10, "no/such/folder"),
    ],
    ids=["0", "65", "RP ID", "metrics", "certificate", "store"],
)
async def test_what_is_wrong_is_said_once(tmp_path: Path, words: list[str], ends: int, says: str) -> None:
    store = ("--store", str(tmp_path / "store"))
    environment = {"TMPDIR": str(tmp_path)}
    status, stdout, stderr = await run(
        "relying_party", "serve", "--listen", "127.0.0.1:0", *store, *words, environment=environment
    )
    assert (status, stdout) == (ends, "")
    (line,) = stderr.splitlines()
    assert says in line
    assert left_in(tmp_path) == []
