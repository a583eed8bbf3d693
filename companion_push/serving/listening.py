"""Listening and shutdown of the push programs: `http_serving.listening` with what this package answers and raises."""

import functools
from typing import Final

import http_serving.listening
from companion_push.serving.http_server import ERRORS, Runner

listening: Final = functools.partial(http_serving.listening.listening, errors=ERRORS)
inherited: Final = functools.partial(http_serving.listening.inherited, errors=ERRORS)
serving: Final = functools.partial(http_serving.listening.serving, Runner)
