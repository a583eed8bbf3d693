"""The account states in Valkey or Redis 7 or newer, one server or a Cluster.

An account has two keys and a place in a third, all in one slot: its value with the version before it, the envelopes of its
live requests by their names, and the list of the accounts of its bucket by the time that changes them. All are written by one
script, which compares the version and applies no rule. The sweep deletes what is over. What no relay sweeps expires by the server's own
clock, a day later and all of an account in one moment, so that a clock that jumps takes nothing away that is needed.

It is asked in the threads of a database's transactions, and each of them waits for its answer.
"""

import asyncio
import contextlib
import hashlib
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, TypeVar

from companion_push.errors import StoreUnavailable, StoreUnusable
from companion_push.relay import account_states
from companion_push.relay.account_states import ABSENT, EnvelopeKey, Value, Write
from companion_push.relay.redis_place import RedisPlace
from headless_passkey.errors import SetupReason
from headless_passkey.mends import setup_error
from headless_passkey.process.tasks import to_its_end

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.cluster import ClusterNode, RedisCluster
    from redis.exceptions import (
        AuthenticationError,
        NoScriptError,
        ReadOnlyError,
        RedisClusterException,
        RedisError,
        ResponseError,
    )
    from redis.retry import Retry
except ImportError as error:
    raise setup_error(
        "account states in Valkey or Redis need redis-py", SetupReason.MISSING_PACKAGE, extra="redis"
    ) from error

CONNECTIONS: Final = 16  # to one server, at most; one for each transaction at a time
OLDEST: Final = 7  # Redis's version, which Valkey names too
BUCKETS: Final = (
    256  # slots that accounts are spread over, so that a Cluster has a use for that many primaries
)
_SECONDS: Final = 2.0  # for one answer, and to connect
_AWAY_SECONDS: Final = 1.0  # for which what did not answer is not asked: thousands would wait for each try
# seconds after the end of a value until it expires: the sweep comes first, and the server's clock may jump by that much
_LATER: Final = 86_400.0
_VERSION: Final = 8  # bytes
_AT_ONCE: Final = 32  # buckets that are asked at once

# KEYS: value, envelopes, list. ARGV: the version before or nothing, the value or nothing, its milliseconds, the account, when time
# changes it, how many envelopes are erased, their names, then names and envelopes
_CAS: Final = """
local stored = redis.call('GET', KEYS[1]) or ''
if string.sub(stored, 1, 8) ~= ARGV[1] then return stored end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('ZREM', KEYS[3], ARGV[4])
  return false
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])  -- the first that writes: only that is refused by a server that is full
if stored == '' then redis.call('DEL', KEYS[2]) end
redis.call('ZADD', KEYS[3], ARGV[5], ARGV[4])
local sealed = 7 + tonumber(ARGV[6])
for at = 7, sealed - 1 do redis.call('HDEL', KEYS[2], ARGV[at]) end
for at = sealed, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1]) end
redis.call('PEXPIRE', KEYS[2], ARGV[3])  -- with the value, as this script's time stands still
return false
"""
# KEYS: value, list. ARGV: the account. What has expired is taken off the list, and what is there again stays
_UNLIST: Final = "if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('ZREM', KEYS[2], ARGV[1]) end"

T = TypeVar("T")


class RedisStates:
    """Account states in Valkey or Redis. Made by `open_redis`."""

    def __init__(self, place: RedisPlace) -> None:
        self._place = place
        self.client: redis.Redis | RedisCluster
        self.is_cluster = False
        self._away: dict[
            int, float
        ] = {}  # until when what did not answer is not asked, by the monotonic clock
        self._scripts: dict[str, str] = {}  # their hashes

    # What a store does

    def load(self, account: str, known: int = ABSENT) -> Value:
        value = _value(self._ask(account, lambda client: client.get(self._keys(account)[0])))
        return Value(known, None) if value.version == known else value

    def cas(self, write: Write) -> Value | None:
        words = _words(write)
        stored = self._ask(
            write.account, lambda client: self._run(client, _CAS, self._keys(write.account), words)
        )
        if stored is None:
            return None
        newest = _value(stored)
        # it was written, and the answer was lost: the client has asked twice
        return None if newest.version == write.version != ABSENT else newest

    def envelopes(self, account: str, keys: Iterable[EnvelopeKey]) -> dict[EnvelopeKey, bytes]:
        wanted = list(keys)
        if not wanted:
            return {}
        names = [_name(key) for key in wanted]
        found = self._ask(account, lambda client: client.hmget(self._keys(account)[1], names))
        return {key: sealed for key, sealed in zip(wanted, found, strict=True) if sealed is not None}

    def due(self, now: float, after: str | None) -> list[str]:
        """As `StateStore.due`. The order is that of the buckets, and of the accounts in each."""
        found: list[str] = []
        first = 0 if after is None else _bucket(after)
        for begin in range(first, BUCKETS, _AT_ONCE):
            found += self._due(range(begin, min(begin + _AT_ONCE, BUCKETS)), now, after)
            if len(found) >= account_states.PORTION:
                break
        return found[: account_states.PORTION]

    def _due(self, buckets: range, now: float, after: str | None) -> list[str]:
        def listed(client: Any) -> list[list[bytes]]:
            asked = client.pipeline(transaction=False)
            for bucket in buckets:
                asked.zrangebyscore(self._list(bucket), "-inf", repr(now))
            return asked.execute()  # type: ignore[no-any-return]

        accounts = [
            account
            for bucket in self._ask(None, listed)
            for account in sorted(name.decode() for name in bucket)
            if after is None or (_bucket(account), account) > (_bucket(after), after)
        ]

        def there(client: Any) -> list[int]:
            asked = client.pipeline(transaction=False)
            for account in accounts:
                asked.exists(self._keys(account)[0])
            return asked.execute()  # type: ignore[no-any-return]

        is_there = dict(zip(accounts, self._ask(None, there), strict=True)) if accounts else {}
        for account in (each for each, exists in is_there.items() if not exists):
            self._unlist(account)
        return [account for account, exists in is_there.items() if exists]

    def _unlist(self, account: str) -> None:
        value, _, listed = self._keys(account)
        self._ask(account, lambda client: self._run(client, _UNLIST, (value, listed), [account]))

    # How it is asked

    def _keys(self, account: str) -> tuple[str, str, str]:
        """The keys of value, envelopes and list."""
        bucket = _bucket(account)
        slot = self._slot(bucket)
        return f"{slot}:v:{account}", f"{slot}:e:{account}", self._list(bucket)

    def _list(self, bucket: int) -> str:
        return f"{self._slot(bucket)}:due"

    def _slot(self, bucket: int) -> str:
        return f"{self._place.prefix}:{{{bucket:02x}}}"

    def _run(self, client: Any, script: str, keys: tuple[str, ...], words: list[Any]) -> Any:
        """Run a script, which the server may not have seen yet, or have forgotten."""
        known = self._scripts.get(script)
        if known is not None:
            with contextlib.suppress(NoScriptError):
                return client.evalsha(known, len(keys), *keys, *words)
        done = client.eval(script, len(keys), *keys, *words)
        self._scripts[script] = _hash(script)
        return done

    def _ask(self, account: str | None, question: Callable[[Any], T]) -> T:
        """Ask the server of an account, or all of them. `StoreUnavailable` when it does not answer, or did not a moment ago."""
        who = _bucket(account) if account is not None and self.is_cluster else -1
        if monotonic() < max(self._away.get(who, 0.0), self._away.get(-1, 0.0)):
            raise StoreUnavailable("the account states did not answer a moment ago")
        try:
            with _translated():
                return question(self.client)
        except StoreUnavailable as error:
            if isinstance(error.__cause__, ReadOnlyError) and isinstance(self.client, redis.Redis):
                self.client.connection_pool.disconnect()  # the name may lead to another server, which is the primary now
            elif not isinstance(error.__cause__, ResponseError):
                self._away[who] = monotonic() + _AWAY_SECONDS
            raise

    # Opening

    def open(self) -> None:
        """Connect to the first host that answers, and look at what it is."""
        failed: StoreUnavailable | None = None
        for host, port in self._place.hosts:
            try:
                with _translated():
                    self._connect(host, port)
            except StoreUnavailable as error:
                if isinstance(error.__cause__, AuthenticationError):
                    wrong = "the server does not take this user with this password"
                    raise _unusable(wrong, SetupReason.STATE_UNWRITABLE) from error
                failed = error
            else:
                self.look()
                return
        assert failed is not None  # noqa: S101  there is a host
        raise failed

    def _connect(self, host: str, port: int) -> None:
        settings = self._settings()
        pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
            host=host,
            port=port,
            db=self._place.number,
            max_connections=CONNECTIONS,
            timeout=_SECONDS,
            retry=Retry(NoBackoff(), 1),  # on a connection that was cut while nobody used it
            connection_class=redis.SSLConnection if self._place.tls else redis.Connection,
            **settings,
        )
        one = redis.Redis(connection_pool=pool)
        try:
            told = one.info("server")  # Valkey 8 calls it server_mode
            self.is_cluster = told.get("redis_mode", told.get("server_mode")) == "cluster"
        except BaseException:
            one.connection_pool.disconnect()
            raise
        if not self.is_cluster:
            self.client = one
            return
        one.connection_pool.disconnect()
        if self._place.number:
            raise _unusable("a Cluster has no database but 0", SetupReason.STATE_INCOMPATIBLE)
        self.client = RedisCluster(
            startup_nodes=[ClusterNode(*each) for each in self._place.hosts],  # type: ignore[no-untyped-call]
            max_connections=CONNECTIONS,
            retry=Retry(NoBackoff(), 2),
            ssl=self._place.tls,
            **settings,
        )

    def _settings(self) -> dict[str, Any]:
        """The settings of each connection."""
        place = self._place
        settings: dict[str, Any] = {
            "username": place.user,
            "password": place.password,
            "socket_timeout": _SECONDS,
            "socket_connect_timeout": _SECONDS,
            "client_name": "companion-push",
            "driver_info": None,  # Redis 7.0 knows no CLIENT SETINFO
        }
        if place.tls:
            settings["ssl_ca_certs"] = None if place.ca is None else str(place.ca)
            settings["ssl_certfile"] = None if place.cert is None else str(place.cert)
            settings["ssl_keyfile"] = None if place.key is None else str(place.key)
        return settings

    def look(self) -> "Looked":
        """Look at the servers. `StoreUnusable` where one cannot be what is needed."""
        with _translated():
            if isinstance(self.client, RedisCluster):
                nodes = self.client.get_primaries()  # type: ignore[no-untyped-call]
                told = [self.client.info(target_nodes=node) for node in nodes]
            else:
                told = [self.client.info()]
        warnings: dict[str, None] = {}
        for each in told:
            if int(str(each["redis_version"]).partition(".")[0]) < OLDEST:
                raise _unusable("the server is older than Redis 7", SetupReason.STATE_INCOMPATIBLE)
            if each["maxmemory"] and each["maxmemory_policy"] != "noeviction":
                raise _unusable(
                    f"its maxmemory-policy is {each['maxmemory_policy']}, which drops requests and limits unseen: noeviction is needed",
                    SetupReason.STATE_INCOMPATIBLE,
                )
            if not each["aof_enabled"]:
                warnings["appendonly is off: what waits is lost when the server stops without notice"] = None
            if not each["connected_slaves"]:
                warnings["there is no replica: nobody takes over when the server is gone"] = None
        first = told[0]
        name = f"Valkey {first['valkey_version']}" if "valkey_version" in first else None
        engine = name or f"Redis {first['redis_version']}"
        return Looked(
            engine=f"{engine}, {len(told)} primaries" if self.is_cluster else engine, warnings=tuple(warnings)
        )

    def close(self) -> None:
        client = getattr(self, "client", None)
        if client is not None:
            client.close()
            if not self.is_cluster:
                client.connection_pool.disconnect()


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What a look at the servers has found."""

    engine: str  # with its version
    warnings: tuple[str, ...]


@contextlib.asynccontextmanager
async def open_redis(place: RedisPlace) -> AsyncIterator[RedisStates]:
    """Open the account states at `place`. `StoreUnavailable` where nobody answers, `StoreUnusable` where it cannot be used."""
    states = RedisStates(place)
    try:
        await to_its_end(asyncio.to_thread(states.open))
        yield states
    finally:
        states.close()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise StoreUnavailable(f"the account states do not answer: {said}") from error


def _unusable(message: str, reason: SetupReason) -> StoreUnusable:
    error = StoreUnusable(f"the account states cannot be kept there: {message}", reason=reason)
    error.advice = "look at the server, and at what its user may do"
    return error


def _bucket(account: str) -> int:
    return zlib.crc32(account.encode()) % BUCKETS


def _name(key: EnvelopeKey) -> str:
    return f"{key.device} {key.request} {key.recipient}"


def _words(write: Write) -> list[bytes | str | int]:
    """The script's arguments of a write."""
    data = b"" if write.data is None else _version(write.version) + write.data
    words: list[bytes | str | int] = [_version(write.expected), data, _milliseconds(write.lasts + _LATER)]
    words += [write.account, repr(write.changes_at), len(write.erased)]
    words += [_name(key) for key in write.erased]
    for key, sealed in write.sealed.items():
        words += [_name(key), sealed]
    return words


def _version(version: int) -> bytes:
    return b"" if version == ABSENT else version.to_bytes(_VERSION, "big")


def _value(stored: bytes | None) -> Value:
    if not stored:
        return Value(ABSENT, None)
    return Value(int.from_bytes(stored[:_VERSION], "big"), stored[_VERSION:])


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _hash(script: str) -> str:
    """The name by which servers know a script that they have seen (EVALSHA)."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
