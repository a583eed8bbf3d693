"""A store of one's own for what lives minutes: requests and their envelopes in memory, in place of the relay's file.

    relay = make_app(config, states=MemoryStates())

Accounts, rings and channels stay in the file. What waits is gone when the process ends, and devices submit it again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from companion_push.relay import account_states
from companion_push.relay.account_states import ABSENT, EnvelopeKey, Value, Write


@dataclass
class MemoryStates:
    """Account states in the memory of this process."""

    values: dict[str, tuple[Value, float]] = field(
        default_factory=dict
    )  # by account, with the time that changes it
    sealed: dict[str, dict[EnvelopeKey, bytes]] = field(default_factory=dict)  # by account

    def load(self, account: str, known: int = ABSENT) -> Value:
        value, _ = self.values.get(account, (Value(ABSENT, None), 0))
        return Value(known, None) if value.version == known else value

    def cas(self, write: Write) -> Value | None:
        newest = self.load(write.account)
        if newest.version != write.expected:
            return newest
        if write.version == ABSENT:
            self.values.pop(write.account, None)
        else:
            self.values[write.account] = Value(write.version, write.data), write.changes_at
        sealed = self.sealed.setdefault(write.account, {})
        sealed.update(write.sealed)
        for key in write.erased:
            sealed.pop(key, None)
        if not sealed:
            del self.sealed[write.account]
        return None

    def envelopes(self, account: str, keys: Iterable[EnvelopeKey]) -> dict[EnvelopeKey, bytes]:
        sealed = self.sealed.get(account, {})
        return {key: sealed[key] for key in keys if key in sealed}

    def due(self, now: float, after: str | None) -> list[str]:
        due = (account for account, (_, at) in self.values.items() if at <= now and account > (after or ""))
        return sorted(due)[: account_states.PORTION]

    def ask_any(self) -> None:
        """It is always there."""
