"""Test the way to a SuperLink: name, port, certificate; nothing but the handshake is sent."""

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from cold_flower.errors import SiteError

SECONDS = 10.0


def check_superlink(address: str, root_certificates: Path) -> str:
    """Shake hands with a SuperLink; return a line about its certificate.

    Args:
        address: ``host:port``.
        root_certificates: the coordinator's ca.crt.

    Raises:
        SiteError: it cannot be reached, or its certificate is not to be trusted: whose it
            is, from when to when it holds, and what to do.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise SiteError(f"--superlink is HOST:PORT, got {address!r}")
    try:
        ca = x509.load_pem_x509_certificate(root_certificates.read_bytes())
        context = ssl.create_default_context(cafile=str(root_certificates))
    except (OSError, ValueError) as error:
        raise SiteError(f"{root_certificates} is no readable PEM certificate: {error}") from error
    try:
        certificate = _handshake(host, int(port), context)
    except ssl.SSLCertVerificationError as error:
        raise SiteError(_refusal(address, error, ca, _unverified(host, int(port)))) from error
    except OSError as error:
        raise SiteError(
            f"no SuperLink answers with TLS at {address}: {error}. Check address, firewall, and "
            "that the SuperLink runs"
        ) from error
    return f"{address} has {_described(certificate)}, signed by {ca.subject.rfc4514_string()}"


def _handshake(host: str, port: int, context: ssl.SSLContext) -> x509.Certificate:
    with (
        socket.create_connection((host, port), timeout=SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")


def _unverified(host: str, port: int) -> x509.Certificate:
    """Fetch the certificate alone, to say what is wrong with it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _handshake(host, port, context)


def _described(certificate: x509.Certificate) -> str:
    owner = certificate.subject.rfc4514_string()
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (
        f"a certificate of {owner}, valid from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    )


def _refusal(
    address: str,
    error: ssl.SSLCertVerificationError,
    ca: x509.Certificate,
    certificate: x509.Certificate,
) -> str:
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc < now:
        cause = "it has expired: the coordinator makes a new one"
    elif certificate.not_valid_before_utc > now:
        cause = "it is not valid yet: check this machine's clock"
    elif ca.not_valid_after_utc < now:
        last = ca.not_valid_after_utc
        cause = f"the CA certificate expired at {last:%Y-%m-%d %H:%M} UTC: ask for the new ca.crt"
    elif not _signed(certificate, ca):
        cause = (
            f"it was not signed by the key of {ca.subject.rfc4514_string()} (from "
            f"{ca.not_valid_before_utc:%Y-%m-%d}): wrong ca.crt, or not the coordinator's server"
        )
    else:
        cause = error.verify_message
    return f"{address} has {_described(certificate)}; it is not trusted: {cause}"


def _signed(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
