"""A server's certificate, and what is wrong with one."""

import ssl
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from http_serving.errors import Errors


def tls_context(cert: Path, key: Path, errors: Errors) -> ssl.SSLContext:
    """A server's TLS settings. What `errors` makes of a certificate says which of the two files is wrong, and how.

    cert: the chain, its own certificate first; key: that one's private key, without a passphrase; both PEM.
    """
    for option, path in (("--cert", cert), ("--key", key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise errors.certificate(path, f"{option}: cannot read {path}: {error.strerror}") from error
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # OpenSSL before 3.0 takes a client's, for which there is no deadline
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(cert, key, password=b"")  # no prompt for a passphrase
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise errors.certificate(cert, _why_not(cert, key, error)) from error
    return context


def _why_not(cert: Path, key: Path, error: Exception) -> str:
    """Say which of certificate and key is wrong: OpenSSL has the same error for most cases."""
    try:
        own = x509.load_pem_x509_certificates(cert.read_bytes())[0].public_key()
    except ValueError:
        return f"--cert: {cert} holds no certificate in PEM form"
    except (OSError, UnsupportedAlgorithm):
        own = None
    try:
        private = load_pem_private_key(key.read_bytes(), None)
    except TypeError:
        return f"--key: the private key in {key} has a passphrase; expected one without"
    except ValueError:
        return f"--key: {key} holds no private key in PEM form"
    except (OSError, UnsupportedAlgorithm):
        private = None
    if own is not None and private is not None:
        form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        if own.public_bytes(*form) != private.public_key().public_bytes(*form):
            return f"--key: the private key in {key} is not that of the first certificate in {cert}"
    why = getattr(error, "reason", None) or type(error).__name__
    return f"--cert: OpenSSL does not take {cert} with {key} ({why})"
