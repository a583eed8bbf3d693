"""Make the vectors of tests/vectors that have no published source (marked ``self``).

    python -m tests.trust.make_vectors

They pin our formats: a change here is a change of the protocol, and a port to another language starts from
them. Keys are fixed and signatures are random, so a second run gives other signatures over the same bodies.
"""

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from headless_passkey.trust.signing import CURVE, SoftwareSigningKey
from tests.trust.people import ACCOUNT, Person, companion, device, found, grow

FOLDER = Path(__file__).parent.parent / "vectors"


def fixed(person: Person, number: int) -> Person:
    """`person` with keys anyone can make again: scalars 100 + number and 200 + number."""
    person.key = SoftwareSigningKey.from_bytes((100 + number).to_bytes(32, "big"))
    person.hpke = ec.derive_private_key(200 + number, CURVE)
    return person


PHONE = fixed(companion("phone"), 1)
TABLET = fixed(companion("tablet \N{GREEK SMALL LETTER ALPHA}"), 2)
FRAME = fixed(device("frame", rp_ids=("example.com", "login.example.org")), 3)


def rings() -> dict[str, Any]:
    first = found(PHONE)
    second = grow(first, PHONE, PHONE, FRAME)
    third = grow(second, PHONE, PHONE, FRAME, TABLET)
    fourth = grow(third, TABLET, TABLET, FRAME)
    return {
        "source": "self",
        "spec": "docs/protocol/trust.md, the ring",
        "rings": [
            {
                "name": f"{ACCOUNT}: founded, a device, a second companion, the first one removed",
                "chain": [
                    {"version": ring.version, "document": ring.document.hex(), "hash": ring.hash.hex()}
                    for ring in (first, second, third, fourth)
                ],
                "members": [member.name for member in fourth.members],
            }
        ],
    }


def main() -> None:
    for name, vectors in (("ring", rings()),):
        (FOLDER / f"{name}.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()
