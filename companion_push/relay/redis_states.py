"""The account states in Valkey or Redis 7 or newer, one server or a Cluster.

An account has two keys and a place in a third, all in one slot: its value with the version before it, the envelopes of its
live requests by their names, and the list of the accounts of its bucket by the time that changes them. All are written by one
script, which compares the version and applies no rule. The sweep deletes what is over. What no relay sweeps expires by the server's own
clock, a day later and all of an account in one moment, the value first, so that a clock that jumps takes nothing away that is needed.

It is asked in the threads of a database's transactions, and each of them waits for its answer.
"""

import asyncio
import contextlib
import hashlib
import logging
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from time import monotonic
from typing import Any, Final, TypeVar

from companion_push.errors import StoreUnavailable, StoreUnusable
from companion_push.relay import account_states
from companion_push.relay.account_states import ABSENT, EnvelopeKey, Value, Write
from companion_push.relay.redis_place import RedisPlace
from headless_passkey.errors import SetupReason
from headless_passkey.mends import setup_error
from headless_passkey.process.tasks import until_done
from name_lookups.resolver import OURS

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.cluster import PRIMARY, ClusterNode, RedisCluster
    from redis.exceptions import (
        AuthenticationError,
        ClusterDownError,
        ClusterError,
        MasterDownError,
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

logger = logging.getLogger(__name__)

CONNECTIONS: Final = 16  # to one server, at most; one for each transaction at a time
OLDEST: Final = 7  # Redis's version, which Valkey names too
BUCKETS: Final = (
    256  # slots that accounts are spread over, so that a Cluster has a use for that many primaries
)
_SECONDS: Final = 2.0  # for one answer, and to connect
_NAME_SECONDS: Final = 6.0  # for a name: a system whose first name server is gone asks the second one after 5
_TRY_SECONDS: Final = 15.0  # for one that tries it again, at most: two tries, and a Cluster's nodes
_AWAY_SECONDS: Final = 1.0  # for which what did not answer is not asked: thousands would wait for each try
# seconds after the end of a value until it expires: the sweep comes first, and the server's clock may jump by that much
_LATER: Final = 86_400.0
_VERSION: Final = 8  # bytes
_ALL: Final = "all"  # who is asked: the one server
_NO_ANSWER: Final = "the account states do not answer: "
_NOT_TAKEN: Final = "the server does not take this user with this password"
_AT_ONCE: Final = 32  # buckets that are asked at once

# values that no relay has written: of another type, or without a version; and a command on a key that may be of another type
_FOREIGN: Final = """
local function foreign(reply)
  return type(reply) == 'table' and reply.err ~= nil and string.find(reply.err, 'WRONGTYPE', 1, true) ~= nil
end
local function nothing(stored)
  return not stored or #stored < 9 or string.sub(stored, 1, 8) == string.rep('\\0', 8)
end
local function put(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return end
  if foreign(reply) then redis.call('DEL', key) end
  redis.call(command, key, ...)
end
"""
# KEYS: value, envelopes, list. ARGV: the version before or nothing, the value or nothing, its milliseconds, the account, when time
# changes it, how many envelopes are erased, their names, then names and envelopes
_CAS: Final = (
    _FOREIGN
    + """
local stored = redis.pcall('GET', KEYS[1])
if type(stored) == 'table' and not foreign(stored) then return stored end
if type(stored) == 'table' or nothing(stored) then stored = '' end
if string.sub(stored, 1, 8) ~= ARGV[1] then return stored end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1], KEYS[2])
  put('ZREM', KEYS[3], ARGV[4])
  return false
end
local sealed = 7 + tonumber(ARGV[6])
-- a server that is full refuses the first command that needs memory, and none after one that writes: of this script it refuses
-- new envelopes alone, so that what waits is claimed, ends and is swept
if sealed > #ARGV then redis.pcall('HDEL', KEYS[2], '') end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if stored == '' then redis.call('DEL', KEYS[2]) end
put('ZADD', KEYS[3], ARGV[5], ARGV[4])
for at = 7, sealed - 1 do put('HDEL', KEYS[2], ARGV[at]) end
for at = sealed, #ARGV, 2 do put('HSET', KEYS[2], ARGV[at], ARGV[at + 1]) end
redis.call('PEXPIRE', KEYS[2], ARGV[3])  -- not before the value: this script's time stands still, but in Redis 7.0
return false
"""
)
# KEYS: value, list. ARGV: the account. What has expired is taken off the list, and what is there again stays
_UNLIST: Final = "if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('ZREM', KEYS[2], ARGV[1]) end"
# KEYS: value, envelopes. Deletes the state of which a relay has not written the one or the other, and says whether there was any
_CLEAR: Final = (
    _FOREIGN
    + """
local stored = redis.pcall('GET', KEYS[1])
local rubbish = foreign(stored) or type(stored) == 'string' and nothing(stored)
if rubbish or foreign(redis.pcall('HDEL', KEYS[2], '')) then return redis.call('DEL', KEYS[1], KEYS[2]) end
return 0
"""
)
# KEYS: list. ARGV: what no relay has written there. Deletes that, and a list of another type
_CLEAR_LIST: Final = _FOREIGN + "for at = 1, #ARGV do put('ZREM', KEYS[1], ARGV[at]) end"

T = TypeVar("T")


class RedisStates:
    """Account states in Valkey or Redis. Made by `open_redis`."""

    def __init__(self, place: RedisPlace) -> None:
        self._place = place
        self.client: redis.Redis | RedisCluster
        self.is_cluster = False
        # until when what did not answer is not asked, by the monotonic clock, and why
        self._away: dict[int | str, tuple[float, str]] = {}
        self._answered = _ALL  # when anybody was asked last
        self._unlisted: set[str | None] = (
            set()
        )  # nodes whose accounts could not be listed, as was logged last
        # what the last listing has read and not told: the next portion does not read it again, or all portions of many accounts
        # would take as long as the square of their number
        self._kept: _Kept | None = None
        self._trying = threading.Lock()
        self._scripts: dict[str, str] = {}  # their hashes
        self._new_nodes: _NewNodes | None = None  # of a Cluster
        self._ends = False
        self._kind = _connections(tls=place.tls, is_over=lambda: self._ends)

    # What a store does

    def load(self, account: str, known: int = ABSENT) -> Value:
        stored = self._read(account, lambda client: client.get(self._keys(account)[0]))
        value = _value(stored)
        if stored is not None and value.version == ABSENT:
            self._clear(account)
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
        found = self._read(account, lambda client: client.hmget(self._keys(account)[1], names)) or []
        return {key: sealed for key, sealed in zip(wanted, found, strict=bool(found)) if sealed is not None}

    def due(self, now: float, after: str | None) -> list[str]:
        """As `StateStore.due`. The order is that of the buckets, and of the accounts in each.

        Accounts of a node that does not answer are left out, unless none does. A portion may have been read with the one before.
        """
        kept = self._kept
        if after is not None and kept is not None and kept.after == after:
            found, at, begin = kept.found, kept.at, kept.begin
        else:
            found, at, begin = [], 0, 0 if after is None else _bucket(after)
        nodes: dict[str | None, StoreUnavailable | None] = {}  # that were asked, and how they failed
        while begin < BUCKETS and len(found) < at + account_states.PORTION:
            end = min(begin + _AT_ONCE, BUCKETS)
            found, at = found[at:] + self._due(range(begin, end), now, after, nodes), 0
            begin = end
        failures = [failed for failed in nodes.values() if failed is not None]
        if failures and len(failures) == len(nodes) and len(found) == at:
            raise failures[0]
        for node, failed in nodes.items():
            self._tell(node, failed)
        portion = found[at : at + account_states.PORTION]
        self._kept = _Kept(portion[-1], found, at + len(portion), begin) if portion else None
        return portion

    def _due(
        self,
        buckets: range,
        now: float,
        after: str | None,
        nodes: dict[str | None, StoreUnavailable | None],
    ) -> list[str]:
        """List the accounts of these buckets, node by node, and note how nodes failed; None is for slots that no node has."""
        by_node: dict[str | None, list[int]] = {}
        for bucket in buckets:
            name = self._asked(bucket)[1]
            by_node.setdefault(name if isinstance(name, str) else None, []).append(bucket)
        found: list[str] = []
        for node, its in by_node.items():
            if nodes.get(node) is not None:  # each try of it takes its time
                continue
            try:
                found += self._due_at(its, now, after)
            except StoreUnavailable as error:
                nodes[node] = error
            else:
                nodes.setdefault(node, None)
        return sorted(found, key=lambda account: (_bucket(account), account))

    def _tell(self, node: str | None, failed: StoreUnavailable | None) -> None:
        """Log that the accounts of a node cannot be listed, and that they can: once each."""
        if failed is not None and node not in self._unlisted:
            logger.warning("the accounts of a node of the Cluster cannot be swept: %s", failed)
            self._unlisted.add(node)
        if failed is None and node in self._unlisted:
            logger.warning("the accounts of a node of the Cluster can be swept again")
            self._unlisted.discard(node)

    def _due_at(self, buckets: list[int], now: float, after: str | None) -> list[str]:
        """List the accounts of buckets that are on one node."""
        listed = self._each(
            buckets[0],
            lambda asked: [asked.zrangebyscore(self._list(bucket), "-inf", repr(now)) for bucket in buckets],
        )
        names = [self._accounts(bucket, found) for bucket, found in zip(buckets, listed, strict=True)]
        accounts = [
            account
            for account in chain.from_iterable(names)
            if after is None or (_bucket(account), account) > (_bucket(after), after)
        ]
        there = self._each(
            buckets[0], lambda asked: [asked.exists(self._keys(account)[0]) for account in accounts]
        )
        for account, exists in zip(accounts, there, strict=True):
            if not exists:
                self._unlist(account)
        return [account for account, exists in zip(accounts, there, strict=True) if exists]

    def _each(self, bucket: int, questions: Callable[[Any], list[Any]]) -> list[Any]:
        """Ask several questions at once of the node that has a bucket; the answer to one that meets a key of another type is that error."""

        def asked(client: Any) -> list[Any]:
            pipeline = client.pipeline(transaction=False)
            if not questions(pipeline):
                return []
            # a pipeline would quote the keys of a command that fails, and with them accounts
            answers: list[Any] = pipeline.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception) and not _is_foreign(answer):
                    raise answer
            return answers

        return self._ask(bucket, asked)

    def _accounts(self, bucket: int, listed: list[bytes] | Exception) -> list[str]:
        """The accounts of a list, in order. What no relay has written there is deleted."""
        names = [] if isinstance(listed, Exception) else listed
        accounts = sorted(filter(None, (_account(name, bucket) for name in names)))
        if len(accounts) == len(names) and not isinstance(listed, Exception):
            return accounts
        others = [name for name in names if _account(name, bucket) is None] or [b""]
        self._ask(bucket, lambda client: self._run(client, _CLEAR_LIST, (self._list(bucket),), others))
        logger.error("the store has lost when accounts are to be swept: something else was in its place")
        return accounts

    def _unlist(self, account: str) -> None:
        value, _, listed = self._keys(account)
        self._ask(account, lambda client: self._run(client, _UNLIST, (value, listed), [account]))

    # What others have written

    def _read(self, account: str, question: Callable[[Any], T]) -> T | None:
        """Ask for something of an account. None where a key of it is of another type, and is deleted."""
        try:
            return self._ask(account, question)
        except StoreUnavailable as error:
            if not _is_foreign(error.__cause__):
                raise
        self._clear(account)
        return None

    def _clear(self, account: str) -> None:
        """Delete what no relay has written: the account goes on without it, and whoever deletes it says so."""
        keys = self._keys(account)[:2]
        if self._ask(account, lambda client: self._run(client, _CLEAR, keys, [])):
            logger.error("the store has lost what waited for an account: something else was in its place")

    def ask_any(self) -> None:
        """As `StateStore.ask_any`: of a Cluster one node is enough, the one that answered last before all others.

        All relays have the same Cluster: were they not ready while a node is away, nobody would be served, and not only its accounts.
        """
        buckets = {self._asked(bucket)[1]: bucket for bucket in range(BUCKETS)}
        nodes = [node for node in buckets if isinstance(node, str)]  # without the slots that no node has
        failed = StoreUnavailable(f"{_NO_ANSWER}no node of the Cluster has a slot")
        for node in sorted(nodes, key=lambda node: (node in self._away, node != self._answered)):
            bucket = buckets[node]
            try:
                self._ask(bucket, partial(self._read_anything, bucket))
            except StoreUnavailable as error:
                failed = error
            else:
                self._answered = node
                return
        raise failed

    def _read_anything(self, bucket: int, client: Any) -> None:
        client.get(f"{self._slot(bucket)}:v:")

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

    def _ask(self, account: str | int, question: Callable[[Any], T]) -> T:
        """Ask the server of an account or a bucket. `StoreUnavailable` when it does not answer, or did not a moment ago.

        Where it did not, one transaction tries it again, and all others are refused until that knows: each has a connection to
        the database, and whoever needs no state would wait for them.
        """
        asked = self._asked(account)
        tried = self._try_again(set(asked))
        try:
            with _translated():
                answer = question(self.client)
        except StoreUnavailable as error:
            is_replica = isinstance(error.__cause__, ReadOnlyError | MasterDownError)
            if is_replica and isinstance(self.client, redis.Redis):
                self.client.connection_pool.disconnect()  # the name may lead to another server, which is the primary now
                self._tried(tried)
            else:
                self._tried(tried, self._away_at(asked, error.__cause__), str(error).removeprefix(_NO_ANSWER))
            raise
        self._tried(tried)
        return answer

    def _asked(self, account: str | int) -> tuple[int | str, int | str]:
        """Who is asked for an account or a bucket: in a Cluster its slot, by its bucket, and the node that has that."""
        if not isinstance(self.client, RedisCluster):
            return _ALL, _ALL
        bucket = _bucket(account) if isinstance(account, str) else account
        try:
            node = self.client.get_node_from_key(self._slot(bucket))  # type: ignore[no-untyped-call]
        except RedisClusterException:
            return bucket, bucket  # nobody has it
        return bucket, str(node.name)

    @staticmethod
    def _away_at(asked: tuple[int | str, int | str], cause: BaseException | None) -> int | str | None:
        """Who does not answer, by an error: a slot, as one that is being moved, or a node. None: who was asked did."""
        slot, node = asked
        if type(cause) is ClusterError:
            return slot
        if isinstance(cause, ClusterDownError):
            return slot if "not served" in str(cause) else node
        return None if isinstance(cause, ResponseError) else node

    def _try_again(self, whose: set[int | str]) -> set[int | str]:
        """Take over to try what was away, and refuse where it still is, or where somebody else tries it."""
        if not self._away:
            return set()
        with self._trying:
            away = {each: self._away[each] for each in whose if each in self._away}
            for until, why in away.values():
                if monotonic() < until:
                    raise StoreUnavailable(f"the account states did not answer a moment ago: {why}")
            self._away.update({each: (monotonic() + _TRY_SECONDS, why) for each, (_, why) in away.items()})
            return set(away)

    def _tried(self, tried: set[int | str], away: int | str | None = None, why: str = "") -> None:
        """Note who of those that were tried is still away, or who is now, and why."""
        if not tried and away is None:
            return
        with self._trying:
            for each in tried:
                self._away.pop(each, None)
            if away is not None:
                self._away[away] = monotonic() + _AWAY_SECONDS, why

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
                    raise _unusable(_NOT_TAKEN, SetupReason.STATE_UNWRITABLE) from error
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
            connection_class=self._kind,
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
        # of the hosts the one that has just answered; from then on it knows the nodes by what they say
        self.client = RedisCluster(
            startup_nodes=[ClusterNode(host, port)],  # type: ignore[no-untyped-call]
            max_connections=CONNECTIONS,
            retry=Retry(NoBackoff(), 2),
            ssl=self._place.tls,
            **settings,
        )
        self._new_nodes = _NewNodes(self.client)
        _connect_by(self.client, self._kind)

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
        """Look at the servers: of a Cluster at those primaries that answer. `StoreUnusable` where one cannot be what is needed."""
        warnings: dict[str, None] = {}
        if isinstance(self.client, RedisCluster):
            nodes = self.client.get_primaries()  # type: ignore[no-untyped-call]
            told = self._told(nodes)
            if away := len(nodes) - len(told):
                warnings[f"{away} of {len(nodes)} primaries do not answer: their accounts are refused"] = None
        else:
            with _translated():
                told = [self.client.info()]
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

    def _told(self, nodes: "list[ClusterNode]") -> list[Any]:
        """What nodes say of themselves, those that answer. `StoreUnavailable` when none does."""
        told: list[Any] = []
        failed = StoreUnavailable(f"{_NO_ANSWER}the Cluster has no primary")
        for node in nodes:
            try:
                with _translated():
                    told.append(self.client.info(target_nodes=node))
            except StoreUnavailable as error:
                failed = error
        if not told:
            raise failed
        return told

    def leave(self) -> None:
        """Wait for no name server any more: the relay ends."""
        self._ends = True

    def close(self) -> None:
        client = getattr(self, "client", None)
        if client is not None:
            client.close()
            if self._new_nodes is not None:
                self._new_nodes.close()
            if not self.is_cluster:
                client.connection_pool.disconnect()


def _connections(*, tls: bool, is_over: Callable[[], bool]) -> type[redis.Connection]:
    """The kind of connections that look a host's name up in bounded time, and that the relay's end does not wait for."""

    class Plain(redis.Connection):
        def _connect(self) -> Any:
            name, failed = self.host, OSError("the name has no address")
            found = OURS.addresses([name], is_over, seconds=_NAME_SECONDS)[name]
            if isinstance(found, Exception):
                raise OSError(str(found)) from found
            for address in found:
                self.host = address
                try:
                    return super()._connect()  # type: ignore[no-untyped-call]
                except OSError as error:
                    failed = error
                finally:
                    self.host = name  # which TLS looks for in the certificate
            raise failed

    class Tls(redis.SSLConnection, Plain):
        pass

    return Tls if tls else Plain


def _connect_by(cluster: RedisCluster, kind: type[redis.Connection]) -> None:
    """Have a Cluster make connections of this kind, to nodes that it will know too: it takes none when it is made."""
    manager = cluster.nodes_manager
    make = manager.create_redis_node

    def made(*args: Any, **options: Any) -> redis.Redis:
        node: redis.Redis = make(*args, **options)  # type: ignore[no-untyped-call]
        node.connection_pool.connection_class = kind
        return node

    manager.create_redis_node = made  # type: ignore[method-assign]
    for node in cluster.get_nodes():  # type: ignore[no-untyped-call]
        if node.redis_connection is not None:
            node.redis_connection.connection_pool.connection_class = kind


@dataclass(frozen=True, slots=True)
class _Kept:
    """The rest of a listing."""

    after: str  # the account after which it goes on
    found: list[str]  # accounts that were read; one that is over by now has nothing left to be swept
    at: int  # the place of the next one
    begin: int  # the bucket that comes then


class _NewNodes:
    """The nodes of a Cluster that have no slot yet, to which an ASK leads when the first one is moved there.

    redis-py 8.1 finds none of that name, and fails with an AttributeError.
    """

    def __init__(self, cluster: RedisCluster) -> None:
        self._nodes: dict[str, ClusterNode] = {}  # by their names
        self._find = cluster.nodes_manager.get_node
        cluster.nodes_manager.get_node = self._get_node  # type: ignore[method-assign]  # its pipelines share that

    def _get_node(
        self, host: str | None = None, port: int | None = None, node_name: str | None = None
    ) -> ClusterNode | None:
        found = self._find(host, port, node_name)
        if found is not None or node_name is None:
            return found
        at, _, number = node_name.rpartition(":")
        return self._nodes.setdefault(node_name, ClusterNode(at, int(number), PRIMARY))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        for node in self._nodes.values():
            if node.redis_connection is not None:
                node.redis_connection.close()


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
        opening = asyncio.ensure_future(asyncio.to_thread(states.open))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            states.leave()
            await until_done(opening)
            opening.exception()
            raise
        yield states
    finally:
        states.close()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, AuthenticationError):
            said = _NOT_TAKEN
        if type(error) is ClusterError and said.startswith("TTL exhausted"):
            said = "a slot is being moved, and not all keys of an account are on one node (TRYAGAIN)"
        raise StoreUnavailable(_NO_ANSWER + said) from error


def _unusable(message: str, reason: SetupReason) -> StoreUnusable:
    error = StoreUnusable(f"the account states cannot be kept there: {message}", reason=reason)
    error.advice = "look at the server, and at what its user may do"
    return error


def _bucket(account: str) -> int:
    return zlib.crc32(account.encode()) % BUCKETS


def _account(name: bytes, bucket: int) -> str | None:
    """The account that a list of this bucket has under a name; None where no relay has written it."""
    account = name.decode(errors="replace")
    return account if account.isascii() and account.isprintable() and _bucket(account) == bucket else None


def _is_foreign(error: BaseException | None) -> bool:
    """Whether a key is of another type than relays make there."""
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")


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
    if stored is None or len(stored) <= _VERSION or not any(stored[:_VERSION]):
        return Value(ABSENT, None)
    return Value(int.from_bytes(stored[:_VERSION], "big"), stored[_VERSION:])


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _hash(script: str) -> str:
    """The name by which servers know a script that they have seen (EVALSHA)."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
