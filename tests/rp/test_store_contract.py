"""What a store for users, passkeys and sessions does: one suite for every engine."""

import asyncio
from dataclasses import replace

import pytest

from relying_party.core.credentials import User
from relying_party.errors import StoreUnavailable, UserExists, VerificationFailed
from tests.rp.records import ADA, EVE, credential, session, use
from tests.rp.stores import Engine


async def test_what_is_stored_comes_back_after_reopening(engine: Engine) -> None:
    async with engine.store() as store:
        assert await store.register(credential(), ADA, session(), ends=None) == ADA
        secret = await store.secret("decoy")
    async with engine.store() as store:
        assert await store.user_by_name("ada", now=2) == ADA
        assert await store.credential(b"credential", now=2) == credential()
        assert await store.credentials_of(ADA.handle, now=2) == [credential()]
        assert await store.session(b"token", now=99) == (session(), ADA)
        assert await store.session(b"token", now=100) is None
        assert await store.secret("decoy") == secret != await store.secret("another")
        assert len(secret) == 32
        (one,) = await store.everyone(now=50, most=10)
        assert (one.user, one.credentials, one.sessions) == (ADA, (credential(),), (session(),))
        assert await store.registered(ADA.handle, now=50) == one
        assert await store.registered(EVE.handle, now=50) is None


async def test_a_refused_registration_leaves_nothing_behind(engine: Engine) -> None:
    async with engine.store() as store:
        await store.register(credential(), ADA, session(), ends=None)
        with pytest.raises(VerificationFailed):
            await store.register(credential(EVE), EVE, session(EVE, b"other"), ends=b"id of token")
        namesake = User(handle=b"n" * 32, name="ada", display_name="")
        with pytest.raises(UserExists):
            await store.register(credential(namesake, b"c2"), namesake, session(namesake, b"t2"), ends=None)
        assert await store.user_by_name("eve", now=2) is None
        assert await store.session(b"other", now=2) is None
        assert await store.session(b"token", now=2) is not None


async def test_a_sign_in_with_a_credential_that_has_gone_opens_nothing(engine: Engine) -> None:
    async with engine.store() as store:
        await store.register(credential(), ADA, session(), ends=None)
        with pytest.raises(VerificationFailed):
            await store.sign_in(use(b"gone"), session(ADA, b"t2"), ends=b"id of token")
        assert await store.session(b"t2", now=2) is None
        assert await store.session(b"token", now=2) is not None


async def test_a_new_session_takes_the_place_of_the_one_before(engine: Engine) -> None:
    async with engine.store() as store:
        await store.register(credential(), ADA, session(token=b"t1"), ends=None)
        await store.sign_in(use(), session(token=b"t2"), ends=b"id of t1")
        await store.sign_in(use(), session(token=b"d1", key="key"), ends=None)
        await store.sign_in(use(), session(token=b"d2", key="key"), ends=None)
        live = [
            token for token in (b"t1", b"t2", b"d1", b"d2") if await store.session(token, now=2) is not None
        ]
        assert live == [b"t2", b"d2"]
        assert await store.end_session(ADA.handle, b"id of t2")
        assert await store.session(b"t2", now=2) is None


async def test_transactions_at_once_run_one_after_the_other(engine: Engine) -> None:
    async with engine.store() as store:
        users = [User(handle=bytes([n]) * 32, name=f"user {n}", display_name="") for n in range(20)]
        results = await asyncio.gather(
            *(
                store.register(credential(user, user.handle), user, session(user, user.handle), ends=None)
                for user in users
            ),
            *(store.register(credential(ADA, b"one"), ADA, session(), ends=None) for _ in range(5)),
            return_exceptions=True,
        )
        failed = [result for result in results if isinstance(result, Exception)]
        assert len(failed) == 4
        assert len(await store.everyone(now=2, most=100)) == 21


async def test_a_cancelled_caller_tears_no_transaction(engine: Engine) -> None:
    async with engine.store() as store:
        task = asyncio.ensure_future(store.register(credential(), ADA, session(), ends=None))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        found = await store.registered(ADA.handle, now=2)
        assert found is None or (found.credentials, found.sessions) == ((credential(),), (session(),))


async def test_two_processes_may_share_a_store(engine: Engine) -> None:
    async with engine.store() as one, engine.store() as two:
        await one.register(credential(), ADA, session(), ends=None)
        assert await two.user_by_name("ada", now=2) == ADA
        await two.register(credential(EVE, b"c2"), EVE, session(EVE, b"t2"), ends=None)
        assert await one.user_by_name("eve", now=2) == EVE


async def test_a_session_changes_only_from_the_state_that_was_seen(engine: Engine) -> None:
    async with engine.store() as store:
        first = session(token=b"t1", key="key")
        await store.register(credential(), ADA, first, ends=None)
        second = replace(first, token_hash=b"t2", refresh_hash=b"r2")
        assert await store.replace_session(second, was=b"t1")
        assert not await store.replace_session(replace(second, token_hash=b"t3"), was=b"t1")
        assert await store.session(b"t2", now=2) == (second, ADA)
        with pytest.raises(VerificationFailed):
            await store.step_up(use(), replace(second, token_hash=b"t4"), was=b"t1", operation=b"o", until=9)
        kept = await store.credential(b"credential", now=2)
        assert kept is not None
        assert kept.last_used_at is None  # all of it, or nothing


async def test_spent_refresh_tokens_are_remembered_for_as_long_as_their_session(engine: Engine) -> None:
    async with engine.store() as store:
        first = replace(session(token=b"t1", key="key"), refresh_hash=b"r1")
        await store.register(credential(), ADA, first, ends=None)
        second = replace(first, token_hash=b"t2", refresh_hash=b"r2", previous_refresh_hash=b"r1")
        third = replace(first, token_hash=b"t3", refresh_hash=b"r3", previous_refresh_hash=b"r2")
        assert await store.replace_session(second, was=b"t1")
        assert await store.replace_session(third, was=b"t2")
        for token in (b"r1", b"r2", b"r3"):
            assert await store.session_of_refresh(token, now=99) == (third, ADA)
            assert await store.session_of_refresh(token, now=100) is None
        assert await store.session_of_refresh(b"r4", now=99) is None
        assert await store.end_session(ADA.handle, third.session_id)
        assert await store.session_of_refresh(b"r1", now=99) is None


async def test_a_closed_store_says_so(engine: Engine) -> None:
    async with engine.store() as store:
        pass
    with pytest.raises(StoreUnavailable):
        await store.user_by_name("ada", now=2)
