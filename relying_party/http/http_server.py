"""The relying party's HTTP layer: `http_serving` with its problem documents and errors."""

from pathlib import Path
from typing import Final

import http_serving.runner
from http_serving.errors import Errors
from relying_party.errors import SetupError, UsageError
from relying_party.http.answers import http_problem

# for a service that mounts an application of this package
http_logger: Final = http_serving.runner.http_logger


class Runner(http_serving.runner.Runner):
    """Serves one application of the relying party."""

    problem = staticmethod(http_problem)


def _bad_certificate(_path: Path, what: str) -> SetupError:
    return SetupError(what)


def _cannot_listen(host: str, port: int, error: OSError) -> SetupError:
    return SetupError(f"cannot listen on {host}:{port}: {error.strerror or error}")


ERRORS: Final = Errors(usage=UsageError, certificate=_bad_certificate, address=_cannot_listen)
