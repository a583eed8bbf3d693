"""Account states in Valkey or Redis: where they are, who may use them, what is refused, and what a Cluster survives."""

import asyncio
import datetime as dt
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
import redis
from certificates import Certificate
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import structs

from companion_push.errors import StoreUnavailable, StoreUnusable
from companion_push.relay import account_states
from companion_push.relay import redis_states as redis_module
from companion_push.relay.account_states import ABSENT, EnvelopeKey, Value, Write
from companion_push.relay.redis_place import RedisPlace, redis_place
from companion_push.relay.redis_states import BUCKETS, RedisStates, open_redis
from headless_passkey.errors import SetupReason, UsageError
from name_lookups.resolver import OURS
from tests.relay import redis_servers
from tests.relay.redis_servers import RedisCluster, RedisServer

ROOT = Path(__file__).parent.parent.parent
PASSWORD = "s3cret-of-the-operator"
ANNAS = EnvelopeKey("frame", "r1", "anna")


def write(account: str, version: int, *, over: int = ABSENT, **changes: Any) -> Write:
    first = Write(
        account=account,
        expected=over,
        version=version,
        data=b"value",
        changes_at=0.0,
        lasts=60,
        sealed={ANNAS: b"sealed"},
        erased=(),
    )
    return structs.replace(first, **changes)


@asynccontextmanager
async def of_its_own(engine: str, *settings: str) -> AsyncIterator[RedisServer]:
    """A server that the test may stop."""
    server = await asyncio.to_thread(RedisServer, engine, *settings)
    try:
        yield server
    finally:
        server.end()


@pytest.fixture
def place() -> RedisPlace:
    return redis_servers.server("redis").place(prefix=f"test-{token_hex(8)}")


# Places


def test_a_uri_names_hosts_and_how_they_are_spoken_to() -> None:
    assert redis_place("redis://cache.example") == RedisPlace(hosts=(("cache.example", 6379),))
    assert redis_place("rediss://relay@one:7000,[::1]:7001,two/?ca=/etc/ca.pem", "secret") == RedisPlace(
        hosts=(("one", 7000), ("::1", 7001), ("two", 6379)),
        tls=True,
        user="relay",
        password="secret",
        ca=Path("/etc/ca.pem"),
    )
    assert redis_place("redis://cache/3?prefix=other") == RedisPlace(
        hosts=(("cache", 6379),), number=3, prefix="other"
    )
    assert str(redis_place("rediss://relay@one,[::1]:7001", "secret")) == "rediss://one:6379,[::1]:7001"


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    "uri",
    [f"redis://relay:{PASSWORD}@cache", f"redis://:{PASSWORD}@cache", f"redis://cache?password={PASSWORD}"],
)
def test_a_password_in_the_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(UsageError, match="REDISCLI_AUTH") as refused:
        redis_place(uri)
    assert PASSWORD not in str(refused.value)


@pytest.mark.threat("T11")
def test_a_place_does_not_show_its_password() -> None:
    assert PASSWORD not in repr(redis_place("redis://cache", PASSWORD))


@pytest.mark.parametrize(
    "uri",
    [
        "", "cache", "redis://", "redis:///1", "http://cache", "redis://cache:x", "redis://cache,,other", "redis://[::1",
        "redis://cache/one", "redis://cache/-1", "redis://cache?", "redis://cache?ca", "redis://cache?ca=x", "rediss://cache?ca=",
        "redis://cache?more=1", "redis://cache?prefix=*", "redis://cache#x", "redis://cache:99999",
    ],
)  # fmt: skip
def test_what_is_no_place_is_refused(uri: str) -> None:
    if uri == "redis://cache?":
        assert redis_place(uri) == redis_place("redis://cache")
        return
    with pytest.raises(UsageError, match="states: "):
        redis_place(uri)


# What time changes


async def test_all_portions_of_a_listing_read_each_list_once() -> None:
    """Of many accounts, each portion would read the lists of all that come after it."""
    accounts = {f"account {number}" for number in range(3 * account_states.PORTION + 1)}
    async with of_its_own("redis") as server, open_redis(server.place()) as states:

        def listed() -> list[str]:
            for account in accounts:
                states.cas(write(account, 5))
            found: list[str] = []
            after: str | None = None
            while portion := states.due(1.0, after):
                found, after = [*found, *portion], portion[-1]
            return found

        found = await asyncio.to_thread(listed)
        assert (len(found), set(found)) == (len(accounts), accounts)
        asked: Any = states.client
        assert asked.info("commandstats")["cmdstat_zrangebyscore"]["calls"] == BUCKETS
        again = await asyncio.to_thread(states.due, 1.0, found[150])  # which no listing goes on after
        assert again == found[151 : 151 + account_states.PORTION]


# Who may use it


def acl_line() -> str:
    """The line that docs/how-to/operate-a-relay.md gives an operator."""
    page = (ROOT / "docs/how-to/operate-a-relay.md").read_text()
    (line,) = re.findall(r"^(user companion-push .*)$", page, re.MULTILINE)
    return str(line)


@pytest.mark.threat("T12")
@pytest.mark.parametrize("engine", ["redis", "valkey"])
async def test_the_user_of_the_docs_may_do_what_a_relay_does_and_no_more(engine: str) -> None:
    line = acl_line().replace("PASSWORD", PASSWORD)
    async with of_its_own(engine, "user default off", line) as server:
        mine = server.place(user="companion-push", password=PASSWORD)
        async with open_redis(mine) as states:
            await asyncio.to_thread(does_it_all, states)
        with pytest.raises(StoreUnavailable, match="permission"):
            async with open_redis(replace(mine, prefix="other")) as states:
                await asyncio.to_thread(states.load, "alice")


def does_it_all(states: RedisStates) -> None:
    """All that a relay does with its states."""
    for account, version in (("alice", 5), ("bob", 6)):
        assert states.cas(write(account, version)) is None
    assert states.cas(write("alice", 7)) == Value(5, b"value")
    assert states.cas(write("alice", 7, over=5, erased=[ANNAS], sealed={})) is None
    assert states.load("alice") == Value(7, b"value")
    assert states.envelopes("alice", [ANNAS]) == {}
    assert states.envelopes("bob", [ANNAS]) == {ANNAS: b"sealed"}
    assert sorted(states.due(1.0, None)) == ["alice", "bob"]
    states._unlist("carol")
    assert states.cas(write("alice", ABSENT, over=7, data=None)) is None
    assert states.due(1.0, None) == ["bob"]
    states.look()


@pytest.mark.threat("T11")
@pytest.mark.parametrize("password", [None, "wrong"])
async def test_a_wrong_password_is_said_at_the_start_and_not_repeated(password: str | None) -> None:
    async with of_its_own("redis", f"requirepass {PASSWORD}") as server:
        with pytest.raises((StoreUnusable, StoreUnavailable)) as refused:
            async with open_redis(server.place(password=password)):
                pass
        assert "wrong" not in str(refused.value)
        assert PASSWORD not in str(refused.value)
        async with open_redis(server.place(password=PASSWORD)) as states:
            assert states.load("alice") == Value(ABSENT, None)


@pytest.mark.threat("T12")
async def test_it_is_spoken_to_under_tls_by_who_has_the_certificates(
    tmp_path: Path,
    loopback_certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ca, cert, key = loopback_certificate
    client = a_client(tmp_path)
    settings = (
        "port 0", "tls-port {port}", f"tls-cert-file {cert}", f"tls-key-file {key}", f"tls-ca-cert-file {client[0]}",
    )  # fmt: skip
    async with of_its_own("redis", *settings) as server:
        believed = server.place(tls=True, ca=ca, cert=client[0], key=client[1])
        async with open_redis(believed) as states:
            await asyncio.to_thread(does_it_all, states)
        port, look_up = believed.hosts[0][1], socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda _, *rest, **how: look_up("127.0.0.1", *rest, **how))
        async with open_redis(replace(believed, hosts=(("localhost", port),))) as states:
            await asyncio.to_thread(does_it_all, states)
        for refused in (
            replace(believed, hosts=(("other.example", port),)),  # which is not in its certificate
            replace(believed, ca=None),  # nobody has signed it whom the system believes
            replace(believed, cert=None, key=None),  # the server asks for one
            replace(believed, tls=False, ca=None, cert=None, key=None),
        ):
            with pytest.raises(StoreUnavailable):
                async with open_redis(refused):
                    pass


def a_client(folder: Path) -> tuple[Path, Path]:
    """A client's certificate, which it has signed itself, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "relay")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "client.pem", folder / "client-key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


# What is refused


@pytest.mark.threat("T17")
@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_drops_values_when_it_is_full_is_refused(policy: str) -> None:
    async with of_its_own("redis", "maxmemory 64mb", f"maxmemory-policy {policy}") as server:
        with pytest.raises(StoreUnusable, match="noeviction") as refused:
            async with open_redis(server.place()):
                pass
        assert refused.value.reason is SetupReason.STATE_INCOMPATIBLE


async def test_a_look_warns_of_what_loses_data() -> None:
    async with of_its_own("redis", "appendonly no") as server, open_redis(server.place()) as states:
        warnings = states.look().warnings
    assert [each.partition(":")[0] for each in warnings] == ["appendonly is off", "there is no replica"]


@pytest.mark.threat("T17")
@pytest.mark.parametrize("engine", ["redis", "valkey"])
async def test_a_server_that_is_full_refuses_new_requests_and_what_waits_is_claimed_and_ends(
    engine: str,
) -> None:
    async with of_its_own(engine) as server, open_redis(server.place()) as states:
        assert states.cas(write("alice", 5)) is None
        server.do("CONFIG", "SET", "maxmemory", 1)
        for refused in (write("bob", 6), write("alice", 6, over=5)):
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                states.cas(refused)
        assert states.load("alice") == Value(5, b"value")
        assert states.cas(write("alice", 7, over=5, data=b"a longer value", sealed={})) is None
        assert states.cas(write("alice", 8, over=7, sealed={}, erased=[ANNAS])) is None
        assert states.envelopes("alice", [ANNAS]) == {}
        assert states.cas(write("carol", 6, sealed={})) is None
        assert states.due(1.0, None) == ["alice", "carol"]
        assert states.cas(write("alice", ABSENT, over=8, data=None, sealed={})) is None
        server.do("CONFIG", "SET", "maxmemory", 0)
        assert states.cas(write("bob", 6)) is None


async def test_a_server_that_is_not_there_is_said(place: RedisPlace) -> None:
    async with of_its_own("redis") as server:
        gone = server.place(password=PASSWORD)
    with pytest.raises(StoreUnavailable, match="do not answer") as refused:
        async with open_redis(gone):
            pass
    assert PASSWORD not in str(refused.value)


# A server that comes and goes


async def test_who_does_not_answer_is_not_asked_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = [100.0]
    monkeypatch.setattr(redis_module, "monotonic", lambda: sum(ticks))
    async with of_its_own("redis") as server, open_redis(server.place()) as states:
        assert states.cas(write("alice", 5)) is None
        server.kill()
        with pytest.raises(StoreUnavailable, match="do not answer"):
            states.load("alice")
        server.start()
        with pytest.raises(StoreUnavailable, match=r"a moment ago: .*refused"):
            states.load("alice")
        ticks.append(redis_module._AWAY_SECONDS)
        assert states.load("alice") == Value(5, b"value")
        assert (
            states.cas(write("alice", 6, over=5)) is None
        )  # also without the script, which it has forgotten


async def test_a_write_whose_answer_is_lost_is_known_when_it_is_sent_again(place: RedisPlace) -> None:
    async with open_redis(place) as states:
        first = write("alice", 5)
        assert states.cas(first) is None
        assert states.cas(first) is None


async def test_values_and_envelopes_expire_by_the_servers_clock_and_are_listed_no_more(
    place: RedisPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = redis_servers.server("redis")
    async with open_redis(place) as states:
        value, envelopes, listed = states._keys("alice")
        assert states.cas(write("alice", 5, lasts=100)) is None
        assert 86_400_000 < server.do("PTTL", value) <= 86_500_000
        assert server.do("PEXPIRETIME", envelopes) - server.do("PEXPIRETIME", value) in range(10_000)
        assert states.cas(write("alice", 6, over=5, lasts=500, sealed={})) is None
        assert server.do("PEXPIRETIME", envelopes) - server.do("PEXPIRETIME", value) in range(10_000)
        monkeypatch.setattr(redis_module, "_LATER", 0.0)
        assert states.cas(write("alice", 7, over=6, lasts=0)) is None
        redis_servers.until(lambda: not server.do("EXISTS", value))
        assert server.do("ZCARD", listed) == 1
        assert states.due(1.0, None) == []
        assert server.do("ZCARD", listed) == 0
        again = write("alice", 8, sealed={})
        assert states.cas(again) is None
        assert states.envelopes("alice", [ANNAS]) == {}, "of the value of before"


# A Cluster


@pytest.fixture(params=["redis", "valkey"])
def cluster(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    made = RedisCluster(request.param)
    yield made
    made.end()


async def test_a_cluster_does_it_all_and_goes_on_after_a_primary_was_killed(cluster: RedisCluster) -> None:
    """What was replicated is there. What was not may be lost, and then is not there at all."""
    accounts = [f"account {number}" for number in range(30)]
    async with open_redis(cluster.place()) as states:
        assert states.is_cluster
        await asyncio.to_thread(does_it_all, states)
        for account in accounts:
            assert states.cas(write(account, 5)) is None
        for node in cluster.nodes[:3]:
            node.do("WAIT", 1, 0)
        cluster.nodes[0].kill()
        lost = []
        for account in accounts:
            async with asyncio.timeout(60):
                while True:
                    try:
                        newest = await asyncio.to_thread(states.cas, write(account, 6, over=5))
                        break
                    except StoreUnavailable:
                        await asyncio.sleep(0.05)
            lost += [account] if newest is not None else []
        assert lost == []
        assert sorted(states.due(1.0, None)) == sorted([*accounts, "bob"])


async def test_the_hosts_of_a_clusters_nodes_are_looked_up_in_bounded_time_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up: list[str] = []
    addresses = OURS.addresses

    def watched(hosts: list[str], *rest: Any, **how: Any) -> Any:
        looked_up.extend(hosts)
        return addresses(hosts, *rest, **how)

    async with open_redis(redis_servers.cluster("redis").place(prefix=f"test-{token_hex(8)}")) as states:
        assert isinstance(states.client, redis.RedisCluster)
        for node in states.client.get_nodes():  # type: ignore[no-untyped-call]
            node.redis_connection.connection_pool.disconnect()
        monkeypatch.setattr(OURS, "addresses", watched)
        await asyncio.to_thread(does_it_all, states)
    assert set(looked_up) == {"127.0.0.1"}


@pytest.mark.threat("T5")
async def test_what_a_killed_primary_had_not_replicated_is_gone_whole_and_can_be_written_again(
    cluster: RedisCluster,
) -> None:
    primary, replica = cluster.nodes[0], cluster.nodes[3]
    async with open_redis(cluster.place()) as states:
        account = next(
            name for number in range(1000) if served_by(states, name := f"account {number}") == primary.port
        )
        replica.send(signal.SIGSTOP)
        primary.do("CLIENT", "KILL", "TYPE", "replica")
        assert states.cas(write(account, 5)) is None  # it is acknowledged, and has not left the primary
        primary.kill()
        replica.send(signal.SIGCONT)
        async with asyncio.timeout(60):
            while True:
                try:
                    found = await asyncio.to_thread(states.load, account)
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
        assert found == Value(ABSENT, None)
        assert await asyncio.to_thread(states.envelopes, account, [ANNAS]) == {}
        assert await asyncio.to_thread(states.cas, write(account, 5)) is None


def served_by(states: RedisStates, account: str) -> int:
    client: Any = states.client
    return int(client.get_node_from_key(states._keys(account)[0]).port)
