"""What `sign-in` and `register` tell of a ceremony's stages."""

import json

import pytest

from headless_passkey.command.ceremony import Ceremony
from headless_passkey.command.cli import make_parser
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.stages import Stage, StageDetail, StageEvent

SIGN_IN = ["sign-in", "--rp", "https://login.example", "--radio", "stdin"]


def ceremony(*options: str) -> Ceremony:
    return Ceremony(make_parser().parse_args([*SIGN_IN, *options]), RequestKind.GET_ASSERTION, None)


@pytest.mark.threat("T2")
def test_a_membership_that_nobody_confirms_is_told_also_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    silent = StageEvent(
        stage=Stage.RING_UNCONFIRMED,
        elapsed=0.25,
        detail={"companion": "x" * 43, "label": "Ada's tablet\x1b[2J", "days": 9},
    )
    ceremony()._on_stage(silent)
    said = capsys.readouterr().err
    assert "no word from \"Ada's tablet" in said
    assert "for 9 days [unconfirmed-ring]" in said
    assert "\x1b" not in said
    ceremony("--json")._on_stage(silent)
    told = json.loads(capsys.readouterr().err)
    assert (told["stage"], told["days"]) == ("ring-unconfirmed", 9)


def test_that_nobody_could_be_notified_is_told_also_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    event = StageEvent(stage=Stage.NOT_NOTIFIED, elapsed=0.25)
    ceremony()._on_stage(event)
    assert capsys.readouterr().err == "   0.250 s  no phone could be notified: open the app\n"


def test_who_was_notified_is_told_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    detail: StageDetail = {"companion": "x" * 43, "label": "Ada's phone", "channel": "fcm"}
    ceremony("--json")._on_stage(StageEvent(stage=Stage.NOTIFIED, elapsed=0.25, detail=detail))
    told = json.loads(capsys.readouterr().err)
    del told["at"]
    assert told == {"stage": "notified", "elapsed": 0.25, **detail}


@pytest.mark.threat("T4")
@pytest.mark.parametrize(
    ("options", "line", "by"),
    [
        ([], "number to type on the companion: 07", "show"),
        (["--digits-by", "blink"], "blink the number to type on the companion: 07", "blink"),
    ],
    ids=["shown", "blinked"],
)
def test_the_digits_are_told_with_the_way_in_which_the_device_tells_them(
    capsys: pytest.CaptureFixture[str], options: list[str], line: str, by: str
) -> None:
    event = StageEvent(stage=Stage.DIGITS, elapsed=0.25, digits="07")
    ceremony(*options)._on_stage(event)
    assert capsys.readouterr().err == f"{line}\n"
    ceremony("--json", *options)._on_stage(event)
    told = json.loads(capsys.readouterr().err)
    del told["at"]
    assert told == {"stage": "digits", "elapsed": 0.25, "digits": "07", "by": by}
    assert "07" not in repr(event)


@pytest.mark.threat("T16")
@pytest.mark.parametrize(
    ("detail", "said"),
    [
        (
            {"first": 5, "last": 7, "given": True},
            "the relay has forgotten rings 5 to 7 and was given them again [relay-forgot-rings]",
        ),
        (
            {"first": 5, "last": 5, "given": False, "reason": "unreachable"},
            "the relay has forgotten ring 5 and does not take it again (unreachable) [relay-forgot-rings]",
        ),
    ],
    ids=["given", "not-taken"],
)
def test_rings_that_the_relay_has_forgotten_are_told_also_without_a_terminal(
    capsys: pytest.CaptureFixture[str], detail: StageDetail, said: str
) -> None:
    event = StageEvent(stage=Stage.RELAY_FORGOT_RINGS, elapsed=0.25, detail=detail)
    ceremony()._on_stage(event)
    assert capsys.readouterr().err == f"   0.250 s  {said}\n"
    ceremony("--json")._on_stage(event)
    told = json.loads(capsys.readouterr().err)
    del told["at"]
    assert told == {"stage": "relay-forgot-rings", "elapsed": 0.25, **detail}
