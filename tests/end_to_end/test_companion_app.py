"""The app of docs/how-to/companion-app.md, as it stands there: it joins, is asked, claims, and hands the URL to the launcher."""

import os
import sys
from pathlib import Path

import pytest
from programs import Program
from world import World

from tests.end_to_end.household import Home, ends, session_of
from tests.end_to_end.test_documented import blocks

pytestmark = pytest.mark.asyncio(loop_scope="module")

# in place of the system's: a phone waits at the other end of the pipe
LAUNCHER = """#!/bin/sh
printf '%s\\n' "$1" > "$PHONE"
"""


async def said(app: Program, word: str) -> str:
    """The rest of the app's next line, which begins with `word`."""
    line = await app.line()
    assert line.split(" ")[0] == word, [line, *app.said]
    return line.partition(" ")[2]


async def test_the_pages_app_joins_and_brings_a_registration_to_the_phone(
    world: World, home: Home, tmp_path: Path
) -> None:
    program, launcher, pipe = tmp_path / "app.py", tmp_path / "xdg-open", tmp_path / "pipe"
    program.write_text("\n".join(blocks("docs/how-to/companion-app.md")))
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    os.mkfifo(pipe, mode=0o600)
    phone = await world.run(
        "phone", "companion-push", "phone", "--url", pipe, "--credentials", tmp_path / "passkeys.json",
        "--radio", world.radio, "--tunnel", world.tunnel, "--uv", "accept", *world.trust,
    )  # fmt: skip
    inviting = await world.run(
        home.phone, "companion-push", "companion", "invite", "--kind", "companion", "--yes", "--number", "-",
        "--state", world.state(home.phone), *world.trust,
    )  # fmt: skip
    app = await Program.start(
        "app", sys.executable, program,
        environment={
            **world.environment, "ANSWER": "yes", "PHONE": str(pipe), "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SSL_CERT_FILE": str(world.certificates.ca),
        },
    )  # fmt: skip
    world.programs.append(app)
    await app.write(f"{await inviting.line()}\n")
    await inviting.write(f"{await said(app, 'number')}\n")
    assert await ends(inviting) == 0

    device = await world.device(home.hub, "register", "--user", f"ada of {home.hub}")
    assert await said(app, "asks") == f"{home.hub} mc localhost"
    session = await session_of(device)
    assert await said(app, "opened") == ""
    assert (await ends(device), await ends(phone), await ends(app)) == (0, 0, 0)
    assert session["user"]["name"] == f"ada of {home.hub}"
    assert not any("FIDO:" in line for each in (app, device, phone) for line in each.said)
