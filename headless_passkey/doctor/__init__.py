"""`headless-passkey doctor` checks what a sign-in on this device needs, and says how to mend what is wrong.

======================================  ====================================================================
`headless_passkey.doctor.finding`       `Finding`: what one check found, with a reason and a mend
`headless_passkey.doctor.bluetooth`     the radio: D-Bus, bluetoothd, adapter, a scan
`headless_passkey.doctor.account`       what this device keeps, the relay, the clocks, its place in the account
`headless_passkey.doctor.servers`       tunnel services and the relying party
`headless_passkey.doctor.versions`      what is installed
`headless_passkey.doctor.examine`       all of it at once: `examine`
`headless_passkey.command.doctor`       the command line
======================================  ====================================================================

It is read-only: it changes nothing on disk, at the relay or at the relying party. docs/how-to/doctor.md lists all
findings.
"""
