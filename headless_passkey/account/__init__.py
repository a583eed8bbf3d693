"""The device's account: enrolment, its state on disk, the client of the relay, and delivery."""
