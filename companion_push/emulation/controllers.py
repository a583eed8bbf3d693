"""Emulated Bluetooth LE controllers on one radio link in a process ([emulation] extra).

They are bumble's controllers with correct adverts: an advert is reported with its own type, a scan response goes from a
scannable advert to an active scanner only, and a reset or a disconnected host ends its adverts. And with correct connections: they
work from public addresses too, and can be called off.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Final, cast

from bumble import core, hci, link, ll
from bumble.controller import Controller, LegacyAdvertiser
from bumble.transport.common import StreamPacketSource

MAX_LEGACY_DATA: Final = 31
MAX_REPORT_DATA: Final = 229  # bytes of advertising data in one HCI event
MAX_ACL_DATA: Final = 251  # bytes of an L2CAP packet in one HCI packet
MAX_UNREAD: Final = 1 << 20  # bytes of unread events after which a host is disconnected
RSSI: Final = -50  # dBm by default

logger = logging.getLogger(__name__)

_Properties = hci.HCI_LE_Set_Extended_Advertising_Parameters_Command.AdvertisingProperties
_ReportEvent = hci.HCI_LE_Extended_Advertising_Report_Event
_SCAN_RESPONSE: Final = _ReportEvent.EventType.SCAN_RESPONSE
_TRUNCATED: Final = _ReportEvent.DATA_INCOMPLETE_TRUNCATED_NO_MORE_TO_COME << 5
_TYPE: Final = (  # the event properties, which a report repeats
    _Properties.CONNECTABLE_ADVERTISING
    | _Properties.SCANNABLE_ADVERTISING
    | _Properties.DIRECTED_ADVERTISING
    | _Properties.USE_LEGACY_ADVERTISING_PDUS
)
_LEGACY_TYPES: Final = {  # LE Set Advertising Parameters, Advertising_Type
    0: _Properties.CONNECTABLE_ADVERTISING | _Properties.SCANNABLE_ADVERTISING,
    1: _Properties.CONNECTABLE_ADVERTISING | _Properties.DIRECTED_ADVERTISING,
    2: _Properties.SCANNABLE_ADVERTISING,
    3: _Properties(0),
    4: _Properties.CONNECTABLE_ADVERTISING | _Properties.DIRECTED_ADVERTISING,
}


class Air:
    """The radio link that all controllers share, with the connected hosts."""

    def __init__(self, limit: int) -> None:
        self.link = _Link()
        self._limit = limit
        self._hosts: dict[int, Host] = {}

    def plug(self, host: "Host") -> int | None:
        """Connect a host; returns its number, from 0, or None when no controller is left."""
        number = next((number for number in range(self._limit) if number not in self._hosts), None)
        if number is not None:
            self._hosts[number] = host
        return number

    def unplug(self, number: int) -> None:
        """Disconnect a host, whose number is free again."""
        del self._hosts[number]

    def close(self) -> None:
        """Disconnect every host."""
        for host in list(self._hosts.values()):
            host.hang_up()


class Host(StreamPacketSource):
    """A host's TCP connection, which carries HCI packets (H4), with a controller of its own."""

    def __init__(self, air: Air) -> None:
        super().__init__()
        self.rssi = RSSI  # with which others receive this host
        self._air = air
        self._number: int | None = None
        self._controller: TruthfulController | None = None
        self._connection: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection = cast("asyncio.Transport", transport)
        self._number = self._air.plug(self)
        if self._number is None:
            logger.warning("refused a host: every controller is in use")
            self.hang_up()
            return
        self._controller = TruthfulController(self._number, self, self._air.link)
        logger.info("host %d plugged in", self._number)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        if self._number is not None and self._controller is not None:
            self._controller.unplug()
            self._air.unplug(self._number)
            logger.info("host %d unplugged", self._number)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except core.InvalidPacketError:
            logger.warning("host %s does not speak HCI", self._number)
            self.hang_up()

    def on_packet(self, packet: bytes) -> None:
        """Forward a packet from the controller to the host."""
        if self._connection is None or self._connection.is_closing():
            return
        if self._connection.get_write_buffer_size() > MAX_UNREAD:
            logger.warning("host %s does not read", self._number)
            self.hang_up()
            return
        self._connection.write(packet)

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.abort()


@dataclass
class Advert(ll.AdvExtInd):
    """An advert on the radio link, with its type."""

    properties: int = 0
    scan_response: bytes = b""
    rssi: int = RSSI


class _Link(link.LocalLink):
    """The radio link. bumble's own takes every sender's data for data from its random address."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def send_acl_data(
        self,
        sender_controller: Controller,
        destination_address: hci.Address,
        transport: core.PhysicalTransport,
        data: bytes,
    ) -> None:
        connection = sender_controller.le_connections.get(destination_address)
        receiver = self.find_le_controller(destination_address)
        if connection is not None and receiver is not None:
            own = connection.self_address
            asyncio.get_running_loop().call_soon(lambda: receiver.on_link_acl_data(own, transport, data))


class TruthfulController(Controller):
    """A controller whose reports repeat the advertiser's type, address and data."""

    le_acl_data_packet_length = MAX_ACL_DATA

    def __init__(self, number: int, host: Host, air: link.LocalLink) -> None:
        # public addresses out of the range for documentation (RFC 7042 §2.1.2)
        address = hci.Address(f"00:00:5E:00:53:{number:02X}", hci.Address.PUBLIC_DEVICE_ADDRESS)
        super().__init__(f"C{number}", host_source=host, host_sink=host, link=air, public_address=address)
        self.le_legacy_advertiser = _LegacyAdvertiser(self)
        self._plugged = host

    def unplug(self) -> None:
        """Disconnect from the radio link, which ends adverts, scans and connections."""
        self.silence()
        self.link.remove_controller(self)
        self.host = None

    def silence(self) -> None:
        """Stop what an HCI reset stops."""
        self.le_legacy_advertiser.stop()
        for advertising_set in self.advertising_sets.values():
            advertising_set.stop()
        self.advertising_sets.clear()
        self.le_scan_enable = False
        self.pending_le_connection = None
        for connection in self.le_connections.values():
            with contextlib.suppress(core.InvalidArgumentError):  # the peer is disconnected already
                connection.send_ll_control_pdu(ll.TerminateInd(hci.HCI_CONNECTION_TIMEOUT_ERROR))
        self.le_connections.clear()

    def on_packet(self, packet: bytes) -> None:
        try:
            super().on_packet(packet)
        except Exception as error:  # noqa: BLE001  whatever a host sends, the others keep their controllers
            logger.warning("controller %s: unusable HCI packet (%s)", self.name, type(error).__name__)

    def send_advertising_pdu(self, packet: ll.AdvertisingPdu) -> None:
        if isinstance(packet, ll.AdvExtInd) and not isinstance(packet, Advert):
            for advertising_set in self.advertising_sets.values():
                parameters = advertising_set.parameters
                if parameters is not None and advertising_set.address == packet.advertiser_address:
                    packet = Advert(
                        advertiser_address=packet.advertiser_address,
                        data=packet.data,
                        sid=packet.sid,
                        periodic_advertising_data=packet.periodic_advertising_data,
                        properties=parameters.advertising_event_properties,
                        scan_response=bytes(advertising_set.scan_response_data),
                    )
                    break
        if isinstance(packet, Advert):
            packet.rssi = self._plugged.rssi
        super().send_advertising_pdu(packet)

    def on_advertising_pdu(self, pdu: ll.AdvInd | ll.AdvExtInd) -> None:
        if not isinstance(pdu, Advert):
            return
        if self.le_scan_enable:
            self._report(pdu, pdu.properties & _TYPE, pdu.data)
            if pdu.properties & _Properties.SCANNABLE_ADVERTISING and self.le_scan_type:
                self._report(pdu, pdu.properties & _TYPE | _SCAN_RESPONSE, pdu.scan_response)
        wanted = self.pending_le_connection
        if (
            wanted is not None
            and pdu.properties & _Properties.CONNECTABLE_ADVERTISING
            and wanted.peer_address == pdu.advertiser_address
        ):
            self.create_le_connection(pdu.advertiser_address)

    def _report(self, pdu: Advert, event_type: int, data: bytes) -> None:
        if len(data) > MAX_REPORT_DATA:
            data, event_type = data[:MAX_REPORT_DATA], event_type | _TRUNCATED
        report = _ReportEvent.Report(
            event_type=event_type,
            address_type=pdu.advertiser_address.address_type,
            address=pdu.advertiser_address,
            primary_phy=hci.Phy.LE_1M,
            secondary_phy=hci.Phy.LE_1M,
            advertising_sid=pdu.sid,
            tx_power=_ReportEvent.TX_POWER_INFORMATION_NOT_AVAILABLE,
            rssi=pdu.rssi,
            periodic_advertising_interval=0,
            direct_address_type=0,
            direct_address=hci.Address.ANY,
            data=data,
        )
        self.send_hci_packet(_ReportEvent([report]))

    def on_hci_reset_command(self, _command: hci.HCI_Reset_Command) -> hci.HCI_StatusReturnParameters:
        self.silence()
        return super().on_hci_reset_command(_command)

    def on_hci_le_create_connection_cancel_command(
        self, _command: hci.HCI_LE_Create_Connection_Cancel_Command
    ) -> hci.HCI_StatusReturnParameters:
        wanted, self.pending_le_connection = self.pending_le_connection, None  # bumble goes on
        if wanted is None:
            return hci.HCI_StatusReturnParameters(hci.HCI_ErrorCode.COMMAND_DISALLOWED_ERROR)
        self.send_hci_packet(
            hci.HCI_LE_Connection_Complete_Event(
                status=hci.HCI_ErrorCode.UNKNOWN_CONNECTION_IDENTIFIER_ERROR,
                connection_handle=0,
                role=hci.Role.CENTRAL,
                peer_address_type=wanted.peer_address.address_type,
                peer_address=wanted.peer_address,
                connection_interval=0,
                peripheral_latency=0,
                supervision_timeout=0,
                central_clock_accuracy=0,
            )
        )
        return hci.HCI_StatusReturnParameters(hci.HCI_ErrorCode.SUCCESS)

    def on_hci_le_set_extended_scan_parameters_command(
        self, command: hci.HCI_LE_Set_Extended_Scan_Parameters_Command
    ) -> hci.HCI_StatusReturnParameters:
        self.le_scan_type = max(command.scan_types, default=0)  # bumble forgets it
        return super().on_hci_le_set_extended_scan_parameters_command(command)

    def on_hci_le_set_extended_advertising_data_command(
        self, command: hci.HCI_LE_Set_Extended_Advertising_Data_Command
    ) -> hci.HCI_StatusReturnParameters:
        advertising_set = self.advertising_sets.get(command.advertising_handle)
        parameters = advertising_set.parameters if advertising_set is not None else None
        if (
            parameters is not None
            and parameters.advertising_event_properties & _Properties.USE_LEGACY_ADVERTISING_PDUS
            and len(command.advertising_data) > MAX_LEGACY_DATA
        ):
            return _refused()
        return super().on_hci_le_set_extended_advertising_data_command(command)

    def on_hci_le_set_extended_advertising_enable_command(
        self, command: hci.HCI_LE_Set_Extended_Advertising_Enable_Command
    ) -> hci.HCI_StatusReturnParameters:
        sets = [self.advertising_sets.get(handle) for handle in command.advertising_handles]
        if command.enable and any(one is None or one.address is None for one in sets):
            return _refused()
        return super().on_hci_le_set_extended_advertising_enable_command(command)


class _LegacyAdvertiser(LegacyAdvertiser):
    """The advertiser of the legacy commands. bumble's own sends connectable adverts only."""

    def send_advertising_data(self) -> None:
        properties = _LEGACY_TYPES.get(self.advertising_type, _Properties(0))
        self.controller.send_advertising_pdu(
            Advert(
                advertiser_address=self.address,
                data=self.advertising_data,
                properties=properties | _Properties.USE_LEGACY_ADVERTISING_PDUS,
                scan_response=self.scan_response_data,
            )
        )


def _refused() -> hci.HCI_StatusReturnParameters:
    return hci.HCI_StatusReturnParameters(hci.HCI_ErrorCode.INVALID_COMMAND_PARAMETERS_ERROR)
