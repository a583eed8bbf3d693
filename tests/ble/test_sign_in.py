"""Whole sign-ins over real BlueZ: the device listens on one adapter, phones advertise from the other, strangers around them."""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import pytest

from companion_push.companion.advertiser.advertiser import Advertiser
from companion_push.companion.advertiser.bluez import BluezAdvertiser
from companion_push.companion.advertiser.bumble import BumbleAdvertiser
from headless_passkey.hybrid.authenticator import PhoneTransaction
from headless_passkey.radio.bleak import BleakRadio
from headless_passkey.stages import Stage
from tests.ble.lab.ceremony import DOMAIN, USER, Ceremony
from tests.ble.lab.guest import PATIENCE, Guest, Phone
from tests.ble.lab.rubbish import broadcasting, service_data
from tests.ports import reserved_port

RADIO = BleakRadio(adapter="hci1")
PHONE = BluezAdvertiser("hci0")
# what nobody should send, and what others do
RUBBISH = (
    b"",
    bytes(31),
    b"\xff" * 31,
    b"\x02\x01\x06",
    b"\x1f\x16\xf9\xff" + bytes(3),  # longer than the advert
    b"\x02\x16\xf9",  # half a UUID
    service_data(b""),
    service_data(bytes(19)),
    service_data(bytes(20)),
    service_data(b"\xff" * 24),
    service_data(b"\xff" * 20, uuid=0xFDE2),
    service_data(bytes(20), uuid=0xFEF3),
    b"\x03\x03\xf9\xff",
    service_data(b"\xaa" * 200),
)


@dataclass(frozen=True)
class Wordy:
    """An advertiser with as much to say as fits into a legacy advert."""

    within: Advertiser

    def advertise(self, service_data: bytes) -> AbstractAsyncContextManager[None]:
        return self.within.advertise(service_data + bytes(7))


@pytest.mark.short
async def test_a_passkey_is_made_and_signs_in(registered: bytes, ceremony: Callable[..., Ceremony]) -> None:
    asked = ceremony()
    signed_in, _ = await asyncio.gather(asked.sign_in(RADIO), asked.phone(PHONE))
    assert signed_in.credential.credential_id == registered
    assert signed_in.credential.user_handle == USER
    assert asked.stages[-1] is Stage.COMPLETED


async def test_a_phone_that_advertises_under_the_older_uuid_signs_in(
    registered: bytes, ceremony: Callable[..., Ceremony]
) -> None:
    asked = ceremony()
    signed_in, _ = await asyncio.gather(asked.sign_in(RADIO), asked.phone(Phone(uuid=0xFDE2)))
    assert signed_in.credential.credential_id == registered


async def test_a_passive_scan_is_enough(guest: Guest, ceremony: Callable[..., Ceremony]) -> None:
    async with guest.experiments():
        asked = ceremony()
        await asyncio.gather(
            asked.sign_in(BleakRadio(adapter="hci1", passive=True), new=True), asked.phone(PHONE)
        )


@pytest.mark.short
@pytest.mark.threat("T12")
async def test_rubbish_on_the_air_keeps_nobody_from_signing_in(
    guest: Guest, registered: bytes, ceremony: Callable[..., Ceremony]
) -> None:
    asked = ceremony()
    async with broadcasting(guest.air, RUBBISH):
        signed_in, _ = await asyncio.gather(asked.sign_in(RADIO), asked.phone(PHONE))
    assert signed_in.credential.credential_id == registered
    assert asked.stages.count(Stage.ADVERT_HEARD) == 1


@pytest.mark.threat("T12")
async def test_a_crowd_of_foreign_adverts_keeps_nobody_from_signing_in(
    guest: Guest, registered: bytes, ceremony: Callable[..., Ceremony]
) -> None:
    asked = ceremony()
    crowd = [service_data(secrets.token_bytes(20)) for _ in range(60)]
    async with broadcasting(guest.air, crowd, interval=200):
        signed_in, _ = await asyncio.gather(asked.sign_in(RADIO), asked.phone(PHONE))
    assert signed_in.credential.credential_id == registered


async def test_of_two_phones_at_once_one_signs_in(
    registered: bytes, ceremony: Callable[..., Ceremony]
) -> None:
    asked = ceremony(recipients=("one", "two"))
    signed_in, *_ = await asyncio.gather(
        asked.sign_in(RADIO),
        asked.phone_in_vain(PHONE, recipient="one"),
        asked.phone_in_vain(PHONE, recipient="two"),
    )
    assert signed_in.credential.credential_id == registered


async def test_two_devices_at_once_each_find_their_own_phone(
    registered: bytes, ceremony: Callable[..., Ceremony]
) -> None:
    one, two = ceremony(), ceremony()
    await asyncio.gather(one.sign_in(RADIO), two.sign_in(RADIO), two.phone(PHONE), one.phone(PHONE))
    assert one.stages.count(Stage.ADVERT_HEARD) == two.stages.count(Stage.ADVERT_HEARD) == 1


@pytest.mark.threat("T9")
async def test_the_advert_of_a_phone_that_has_gone_does_not_end_the_listening(
    registered: bytes, ceremony: Callable[..., Ceremony]
) -> None:
    asked = ceremony()

    async def phones() -> None:
        url = (await asked.carrier.urls)["phone"]
        gone = PhoneTransaction(url).advertise(routing_id=b"abc", tunnel_domain=DOMAIN)
        async with PHONE.advertise(gone.service_data):
            await asked.reached(Stage.ATTEMPT_FAILED).wait()
        await asked.phone(PHONE)

    signed_in, _ = await asyncio.gather(asked.sign_in(RADIO), phones())
    assert signed_in.credential.credential_id == registered
    assert asked.stages.count(Stage.ADVERT_HEARD) == 2


async def test_the_same_phone_signs_in_again_and_again(
    registered: bytes, ceremony: Callable[..., Ceremony]
) -> None:
    for _ in range(3):
        asked = ceremony()
        signed_in, _ = await asyncio.gather(asked.sign_in(RADIO), asked.phone(PHONE))
        assert signed_in.credential.credential_id == registered


@pytest.mark.threat("T7")
async def test_a_phone_below_the_floor_is_heard_once_it_has_come_near(
    guest: Guest, registered: bytes, ceremony: Callable[..., Ceremony]
) -> None:
    asked = ceremony()
    await guest.heard_at("hci0", -90)

    async def comes_near() -> None:
        async def on_the_air() -> bool:
            return await guest.advertising("hci0") == 1

        async def heard() -> bool:
            devices = [
                has["org.bluez.Device1"]
                for has in (await guest.objects()).values()
                if "org.bluez.Device1" in has
            ]
            return any(device.get("RSSI") == -90 for device in devices)

        await guest.until(on_the_air)
        await guest.until(heard)
        assert Stage.ADVERT_HEARD not in asked.stages
        await guest.heard_at("hci0", -50)

    await asyncio.gather(asked.sign_in(RADIO, min_rssi=-70), asked.phone(PHONE), comes_near())


@pytest.mark.short
async def test_over_the_direct_channel_no_tunnel_service_is_needed(
    registered: bytes, ceremony: Callable[..., Ceremony], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ceremony.DIRECT_TIMEOUT", "radio.l2cap_socket.CONNECT_TIMEOUT"):  # this processor is slow
        monkeypatch.setattr(f"headless_passkey.{name}", PATIENCE)
    asked = ceremony()
    asked.tunnels = f"wss://localhost:{reserved_port()}"
    signed_in, _ = await asyncio.gather(asked.sign_in(RADIO, direct=True), asked.phone(PHONE))
    assert signed_in.credential.credential_id == registered
    assert Stage.DIRECT_JOINED in asked.stages
    assert Stage.DIRECT_FAILED not in asked.stages


async def test_an_advert_with_a_suffix_signs_in(
    guest: Guest, registered: bytes, ceremony: Callable[..., Ceremony]
) -> None:
    asked = ceremony()
    await asyncio.gather(asked.sign_in(RADIO), asked.phone(Wordy(BumbleAdvertiser(guest.air))))
