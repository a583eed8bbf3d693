"""Who may speak for an account: rings, invitations, envelopes. Pure: no I/O, time is passed in."""
