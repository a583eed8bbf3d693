"""The relay that withholds answers former members as the real one does, and with no error of its own."""

from rogue_relay import RogueRelay


def test_a_member_that_was_removed_is_shown_what_the_real_relay_says() -> None:
    rogue = RogueRelay(lambda: "withhold")
    assert rogue._withheld({"version": 2, "rings": [], "words": []}, "a former member") == {}
    assert rogue._for_members_only('{"envelopes": []}', "a former member") == b'{"envelopes": []}'
