"""The options that every server program of this package has, in the same words as the relying party's."""

import argparse
from pathlib import Path

from companion_push.serving.addresses import Network, network
from headless_passkey.command.command_line import host_port


def add_serving(parser: argparse.ArgumentParser, *, port: int) -> None:
    """Where to listen, with which certificate, behind whom. port: the default one."""
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=host_port,
        default=("127.0.0.1", port),
        help=f"default: 127.0.0.1:{port}; port 0 takes a free one",
    )
    parser.add_argument(
        "--cert",
        metavar="FILE",
        type=Path,
        help="certificate chain, PEM; without it plain HTTP on loopback",
    )
    parser.add_argument("--key", metavar="FILE", type=Path, help="its private key, PEM")
    parser.add_argument(
        "--trusted-proxy",
        metavar="NETWORK",
        type=_network,
        action="append",
        default=[],
        help="a proxy in front, whose X-Forwarded-For tells a client's address; may be given again",
    )


def _network(text: str) -> Network:
    try:
        return network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("expected an address or a network, such as 10.0.0.0/8") from error
