"""Twins: labels that people cannot tell apart, whatever characters they are made of."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from companion_push.companion.twins import are_twins, skeleton, twin_of
from program_parts.names import is_plain
from tests.trust.people import companion, device

pytestmark = pytest.mark.threat("T4")

HUB = "Kitchen hub"
ALIKE = {
    "the same": (HUB, HUB),
    "capitals": (HUB, "KITCHEN HUB"),
    "Cyrillic": (HUB, "\u041a\u0456t\u0441h\u0435n hub"),
    "Armenian": (HUB, "Kitc\u0570en hub"),
    "mathematical": (HUB, "\U0001d40a\U0001d422\U0001d42d\U0001d41c\U0001d421\U0001d41e\U0001d427 hub"),
    "full width": (HUB, "\uff2b\uff49\uff54\uff43\uff48\uff45\uff4e hub"),
    "two spaces": (HUB, "Kitchen  hub"),
    "U+2800": (HUB, "Kitchen\u2800hub"),
    "U+2800 at the end": (HUB, "Kitchen hub\u2800"),
    "U+034F": (HUB, "Kit\u034fchen hub"),
    "U+115F": (HUB, "Kitchen hub\u115f"),
    "U+17B4": (HUB, "Kitchen\u17b4 hub"),
    "U+180B": (HUB, "Kitchen hub\u180b"),
    "U+FE0F": (HUB, "Kitchen hub\ufe0f"),
    "ZWNJ": (HUB, "Kit\u200cchen hub"),
    "right-to-left mark": (HUB, "Kitchen\u200f hub"),
    "decomposed": ("K\u00fcche", "Ku\u0308che"),
    "l, 1 and I": ("phone l", "phone 1"),
    "O and 0": ("R00M", "ROOM"),
    "rn and m": ("modem", "modern"),
    "Greek": ("a", "\u03b1"),
    "kanji and katakana": ("\u4e8c", "\u30cb"),
    "emoji with and without style": ("\u2764", "\u2764\ufe0f"),
}
APART = {
    "another word": (HUB, "Kitchen lamp"),
    "a number": (HUB, "Kitchen hub 2"),
    "numbers": ("phone 2", "phone 7"),
    "an accent": ("K\u00fcche", "Kuche"),
    "Hebrew": ("\u05de\u05d8\u05d1\u05d7", "\u05de\u05d8\u05d1"),
    "emoji": ("Ada \U0001f469\u200d\U0001f4bb", "Ada \U0001f468\u200d\U0001f4bb"),
}


@pytest.mark.parametrize(("one", "other"), ALIKE.values(), ids=ALIKE)
def test_labels_that_look_alike_are_twins(one: str, other: str) -> None:
    assert are_twins(one, other)
    assert are_twins(other, one)


@pytest.mark.parametrize(("one", "other"), APART.values(), ids=APART)
def test_labels_that_look_different_are_none(one: str, other: str) -> None:
    assert not are_twins(one, other)
    assert not are_twins(other, one)


@pytest.mark.parametrize("plane", range(3))
def test_the_skeleton_of_every_character_is_its_own(plane: int) -> None:
    characters = (chr(code) for code in range(plane << 16, (plane + 1) << 16) if not 0xD800 <= code < 0xE000)
    assert [each for each in characters if skeleton(skeleton(each)) != skeleton(each)] == []


@example("%")
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=64))
def test_a_skeleton_is_its_own_and_every_label_its_own_twin(text: str) -> None:
    assert skeleton(skeleton(text)) == skeleton(text)
    if is_plain(text):
        assert are_twins(text, text)


def test_the_twin_is_found_among_members_and_nobody_is_its_own() -> None:
    phone, hub, lamp = companion("Phone"), device(HUB), device("Lamp")
    members = [phone.member, hub.member, lamp.member]
    assert twin_of("\u041aitchen hub", members) == hub.member
    assert twin_of("Kitchen lamp", members) is None
    assert twin_of("KITCHEN HUB", members, but=hub.name) is None
    assert twin_of("phone", members, but=hub.name) == phone.member
    assert twin_of("phone", []) is None
