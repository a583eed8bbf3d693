"""Mends: what to do about each reason of an error or of a finding of `headless-passkey doctor`.

Errors have them as their ``advice``, the doctor shows them, and docs/how-to/doctor.md lists them::

    except HeadlessPasskeyError as error:
        print(error, error.advice)

Of a phone's answer the reason is its CTAP status, as the specification spells it. A mend is for a terminal: one line, commands in backquotes, and names in capitals where the caller gives none.
"""

import re
import sys
from collections.abc import Mapping
from typing import Final

from headless_passkey.errors import (
    EnrolmentReason,
    SetupError,
    SetupReason,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
)

SET_CLOCK: Final = "`sudo timedatectl set-ntp true`"
ELSEWHERE: Final = "name a directory for this device alone with `--state`"

# by reason, and by case where a reason has several mends
MENDS: Final[Mapping[tuple[str, str | None], str]] = {
    # Bluetooth
    (TransportReason.NO_DBUS, None): (
        "start it with `sudo systemctl start dbus`; in a container, share /run/dbus/system_bus_socket with it"
    ),
    (TransportReason.NO_BLUETOOTH_SERVICE, None): (
        "start it with `sudo systemctl enable --now bluetooth`, after `sudo apt install bluez` where it is missing"
    ),
    (TransportReason.NO_ADAPTER, None): "plug one in, or use another radio",
    (TransportReason.NO_ADAPTER, "named"): "`bluetoothctl list` shows which there are",
    (TransportReason.ADAPTER_OFF, None): "turn it on with `bluetoothctl power on`",
    # bluetoothctl acts on the first adapter of its list, and takes no name such as hci1
    (TransportReason.ADAPTER_OFF, "named"): (
        "turn it on with `busctl set-property org.bluez /org/bluez/NAME org.bluez.Adapter1 Powered b true`"
    ),
    (TransportReason.ADAPTER_BLOCKED, None): (
        "unblock it with `sudo rfkill unblock bluetooth`, or with the switch that this machine has for it"
    ),
    (TransportReason.ADAPTER_BLOCKED, "soft"): "unblock it with `sudo rfkill unblock bluetooth`",
    (TransportReason.ADAPTER_BLOCKED, "hard"): (
        "use the switch or key that this machine has for it, or its firmware's settings: no command can"
    ),
    (TransportReason.ADAPTER_UNABLE, None): "use another one, of Bluetooth 4.0 or newer",
    (TransportReason.ADAPTER_UNABLE, "passive"): "scan actively, or start bluetoothd with --experimental",
    (TransportReason.ADAPTER_BUSY, None): "end what uses it, or use another one",
    (TransportReason.BLUETOOTH_FORBIDDEN, None): (
        "allow it, on Debian with `sudo usermod --append --groups bluetooth USER` and a new login"
    ),
    (TransportReason.BLUETOOTH_FORBIDDEN, "controller"): (
        "let this user open it: USB with a udev rule, a serial port with the group dialout, an HCI socket with CAP_NET_ADMIN"
    ),
    (TransportReason.BLUETOOTH_FAILED, None): (
        "try again, or restart it with `sudo systemctl restart bluetooth`"
    ),
    (TransportReason.BLUETOOTH_FAILED, "controller"): (
        "try again, or unplug the controller and plug it in again"
    ),
    # other processes of this machine
    (TransportReason.NO_INPUT, None): "see to it that what is piped in, typed or scanned comes, and in time",
    (
        TransportReason.IN_USE,
        None,
    ): "try again when the other process has ended: `fuser --verbose PATH` names it",
    # the network
    (TransportReason.NAME_NOT_RESOLVED, None): (
        "check how the name is spelled, and this machine's network: `getent hosts HOST` must print an address"
    ),
    (TransportReason.UNREACHABLE, None): (
        "check that it runs, and that network and firewalls let this machine through: `curl --verbose URL`"
    ),
    (TransportReason.UNREACHABLE, "Bluetooth"): "bring the phone near, and try again",
    (TransportReason.UNREACHABLE, "hung up"): "try again, and look at the phone: it may say why it ended",
    (TransportReason.UNREACHABLE, "tunnel"): (
        "try again; where it happens each time, the log of the tunnel service says why its tunnels end"
    ),
    (TransportReason.UNTRUSTED_CERTIFICATE, None): (
        "where the server has an authority of its own, name that with `--ca FILE`, which takes the place of the"
        " system's; elsewhere somebody may be in between"
    ),
    (TransportReason.UNTRUSTED_CERTIFICATE, "name"): (
        "check the address; where it is right, somebody is in between, as a network is that wants a login first, in a browser"
    ),
    (TransportReason.UNTRUSTED_CERTIFICATE, "dates"): (
        f"if this machine's clock is wrong, set it with {SET_CLOCK}; if it is right, the server needs a new certificate"
    ),
    (TransportReason.PROXY_FAILED, None): (
        "check HTTPS_PROXY; a host that is reached without a proxy is named in NO_PROXY"
    ),
    (
        TransportReason.PROXY_FAILED,
        "credentials",
    ): "put them into HTTPS_PROXY, as in http://NAME:PASSWORD@PROXY:PORT",
    (
        TransportReason.PROXY_FAILED,
        "setting",
    ): "set it to http://PROXY:PORT, or to http://NAME:PASSWORD@PROXY:PORT",
    (TransportReason.WENT_SILENT, None): (
        "try again; where it happens each time, look at what is in between: a proxy or firewall may forget connections"
    ),
    (TransportReason.UNKNOWN_TO_RELAY, None): (
        "ask its operator whether the relay was set up anew; if it was, `headless-passkey leave --anyway` and join with a new invitation"
    ),
    (TransportReason.RELAY_INCONSISTENT, None): "try again later; where it stays, ask its operator",
    (TransportReason.SERVER_FAILED, None): "try again later; the server's log tells its operator more",
    # trust
    (TrustReason.CLOCK_SKEW, None): (
        f"set this machine's clock with {SET_CLOCK}; if it is right, the server's is wrong"
    ),
    (TrustReason.CLOCK_SKEW, "members"): f"set both clocks, here with {SET_CLOCK}",
    (TrustReason.DIGITS_MISSING, None): "sign in with `--match-digits`, and type the number on the companion",
    (
        TrustReason.LABEL_TAKEN,
        None,
    ): "choose another label, or `companion-push companion rename` the other member",
    (TrustReason.NOT_A_MEMBER, None): (
        "`headless-passkey leave`, then `headless-passkey join` with a new invitation"
    ),
    (TrustReason.FORKED_RING, None): (
        "if the account was set up anew, `headless-passkey leave` and join with a new invitation; if not, ask its operator"
    ),
    (TrustReason.UNEXPECTED_USER, None): (
        "`headless-passkey users list` shows whom it expects; `--add-user` adds one more, `--any-user` takes whoever answers, this once"
    ),
    (TrustReason.UNEXPECTED_USER, "full"): "make room with `headless-passkey users forget`",
    (TrustReason.UNCONFIRMED_RING, None): (
        "start another companion, and try again: it says then which members it knows; or compare the number of `headless-passkey status` with that of `companion-push companion members`"
    ),
    (TrustReason.WITHHELD_RING, None): (
        "the relay hides a change of the account's members: ask its operator, and look at `companion-push companion members`"
    ),
    (TrustReason.BACKDATED_RING, None): (
        f"set the clock of the companion that changed the account, there with {SET_CLOCK}; if it was right, look at the members"
    ),
    (
        TrustReason.CHANGED_MEMBER,
        None,
    ): "look at the members with `companion-push companion members`, and remove who did this",
    (
        TrustReason.BAD_POSSESSION,
        None,
    ): "look at the members with `companion-push companion members`, and remove who did this",
    (TrustReason.NOT_A_COMPANION, None): "change the account with a companion",
    (TrustReason.LAST_COMPANION, None): (
        "let another companion in first, with `companion-push companion invite --kind companion`"
    ),
    (TrustReason.RING_GAP, None): (
        "`headless-passkey leave --anyway`, then `headless-passkey join` with a new invitation; a companion joins again too"
    ),
    (TrustReason.RING_FULL, None): "remove members that are not used any more",
    (TrustReason.WRONG_NUMBER, None): (
        "invite again; if it was no slip, give the new invitation to the newcomer in another way, which nobody else can see"
    ),
    # the phone's answer
    ("CTAP2_ERR_NO_CREDENTIALS", None): (
        "try again, and approve on the phone that has the passkey; where there is none yet, `headless-passkey register`"
    ),
    (
        "CTAP2_ERR_CREDENTIAL_EXCLUDED",
        None,
    ): "sign in with the passkey that this phone has, or use another phone",
    ("CTAP2_ERR_OPERATION_DENIED", None): "if that was not meant, try again, and say yes on the phone",
    ("CTAP2_ERR_KEEPALIVE_CANCEL", None): "if that was not meant, try again, and say yes on the phone",
    ("CTAP2_ERR_USER_ACTION_TIMEOUT", None): "try again, and answer the phone while it asks",
    ("CTAP2_ERR_ACTION_TIMEOUT", None): "try again, and answer the phone while it asks",
    ("CTAP2_ERR_UV_BLOCKED", None): "unlock the phone with its code once, and try again",
    ("CTAP2_ERR_PIN_NOT_SET", None): "set a screen lock on the phone, or a PIN on the security key",
    ("CTAP2_ERR_KEY_STORE_FULL", None): "remove a passkey that is not used any more, or use another phone",
    (
        "CTAP2_ERR_UNSUPPORTED_ALGORITHM",
        None,
    ): "use another phone: this one makes no passkey that the server takes",
    # the state of this device
    (EnrolmentReason.NOT_ENROLLED, None): (
        "`companion-push companion invite` on a companion, then `headless-passkey join --invitation FILE --label NAME` here"
    ),
    (EnrolmentReason.ACCOUNT_CLOSED, None): (
        "ask its operator; where it was set up anew, leave, and join again with an invitation from a companion of the new account"
    ),
    (EnrolmentReason.ACCOUNT_SUSPENDED, None): (
        "ask its operator; nothing here has to change, and all goes on as before when the suspension is lifted"
    ),
    (EnrolmentReason.DEVICE_MUTED, None): (
        "find out who asked, and for what; if all is well, `companion-push companion mute remove WHO` on a companion"
    ),
    (EnrolmentReason.JOIN_UNFINISHED, None): (
        "`headless-passkey join` again, with the same invitation or with another one"
    ),
    (
        SetupReason.ALREADY_ENROLLED,
        None,
    ): "`headless-passkey leave`, or name another directory with `--state`",
    (SetupReason.STATE_EXPOSED, None): (
        "`chmod MODE PATH`; if somebody may have read it, `headless-passkey leave` and join again"
    ),
    (SetupReason.STATE_EXPOSED, "links"): (
        "`chmod MODE PATH`; if somebody may have read it, `headless-passkey phones forget --all`, and let the phones forget this device"
    ),
    (SetupReason.STATE_EXPOSED, "directory"): ELSEWHERE,
    (SetupReason.STATE_FOREIGN, None): "run as the user it belongs to, or `sudo chown USER PATH`",
    (SetupReason.STATE_FOREIGN, "directory"): ELSEWHERE,
    (SetupReason.STATE_DAMAGED, None): (
        "`headless-passkey leave`, or `rm PATH`, then `headless-passkey join` with a new invitation"
    ),
    (SetupReason.STATE_DAMAGED, "session"): "`rm PATH`, then sign in again",
    (
        SetupReason.STATE_DAMAGED,
        "users",
    ): "`rm PATH`, then sign in with the user whom this device is to expect",
    (SetupReason.STATE_DAMAGED, "links"): "`rm PATH`, then sign in with `--link`",
    (SetupReason.STATE_DAMAGED, "directory"): ELSEWHERE,
    (SetupReason.STATE_INCOMPATIBLE, None): "use the version of this program that wrote it, or a newer one",
    (
        SetupReason.STATE_INCOMPATIBLE,
        "earlier",
    ): "`rm PATH`, then `headless-passkey join` with a new invitation",
    (SetupReason.STATE_INCOMPATIBLE, "session"): "sign in again, which replaces it",
    (SetupReason.STATE_INCOMPATIBLE, "links"): "`rm PATH`, then sign in with `--link`",
    (SetupReason.STATE_UNREADABLE, None): "see to it that this user can read it: `ls -ld PATH`",
    (SetupReason.STATE_UNWRITABLE, None): (
        "see to it that this user can write there (`ls -ld PATH`), or name another directory with `--state`"
    ),
    (
        SetupReason.DISK_FULL,
        None,
    ): "make room: `df -h PATH` shows how much there is, and `quota` what is this user's",
    (SetupReason.OUTPUT_UNWRITABLE, None): "see to it that this user can write there, and that there is room",
    # servers
    (SetupReason.BAD_CERTIFICATE, None): (
        "name a file in PEM form that this user can read: `openssl x509 -noout -subject -in FILE` must print whose it is"
    ),
    (
        SetupReason.PORT_TAKEN,
        None,
    ): "end what listens there (`ss -ltnp 'sport = :PORT'` shows it), or use another port",
    (SetupReason.CANNOT_LISTEN, None): (
        "listen on an address of this machine (`ip address` lists them), and on a port that this user may use, such as 8443"
    ),
    (SetupReason.WRONG_SERVER, None): (
        "check the address, what a proxy in front of the server passes on, and whether this network wants a login first, in a browser"
    ),
    (SetupReason.WRONG_SERVER, "path"): (
        "check the address, and name the path that the relying party is mounted at, as in https://HOST/passkeys"
    ),
    (SetupReason.CREDENTIALS_REFUSED, None): (
        "look in the push service's console whether this key is still there, and what it is for; name its file anew"
    ),
    (SetupReason.MISSING_PACKAGE, None): "`pip install '.[EXTRA]'` in the clone of headless-passkey",
}

# on systems without systemctl, rfkill and bluetoothctl
_ELSEWHERE: Final[Mapping[str, str]] = {
    TransportReason.ADAPTER_OFF: "turn it on in the system's settings",
    TransportReason.BLUETOOTH_FORBIDDEN: "allow it for this program in the system's settings",
    TransportReason.BLUETOOTH_FAILED: "try again, or turn Bluetooth off and on in the system's settings",
}


def mend(reason: str | None, case: str | None = None, **names: str) -> str | None:
    """Find the mend for a reason; None where there is no general one.

    case: a case of `MENDS`. names: replacements for the names in capitals, in lower case
    here: ``mend(SetupReason.STATE_DAMAGED, path="/var/lib/…")``.
    """
    if reason is None:
        return None
    general = case is None or (reason, case) not in MENDS
    if general and sys.platform != "linux" and reason in _ELSEWHERE:
        return _ELSEWHERE[reason]
    words = MENDS.get((reason, case)) or MENDS.get((reason, None))
    return words and re.sub(r"\b[A-Z]+\b", lambda found: names.get(found[0].lower(), found[0]), words)


def transport_error(
    what: str, reason: TransportReason, case: str | None = None, **names: str
) -> TransportError:
    """Make a `TransportError` with its mend as advice. case, names: as for `mend`."""
    return TransportError(what, reason=reason, advice=mend(reason, case, **names))


def setup_error(what: str, reason: SetupReason, case: str | None = None, **names: str) -> SetupError:
    """Make a `SetupError` with its mend as advice."""
    return SetupError(what, reason=reason, advice=mend(reason, case, **names))


def clock_skew(what: str, case: str | None = None) -> TrustError:
    """Make a `TrustError` (clock-skew) with its mend as advice."""
    reason = TrustReason.CLOCK_SKEW
    return TrustError(reason, what, advice=mend(reason, case))
