"""What is wrong with a certificate, said before anything is sent."""

import socket
import ssl
import threading
from contextlib import contextmanager, suppress

import pytest

from cold_flower.commands.tls import check_superlink
from cold_flower.errors import SiteError
from tests.federation import Place, free_port


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Make a CA with the page's commands."""
    folder = tmp_path_factory.mktemp("ca")
    authority = Place(folder, DIR=folder, HOST="localhost")
    authority.run("ca")
    return authority


@contextmanager
def serving(place):
    """Answer TLS handshakes with the place's certificate; yield the address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place.folder / "server.pem", place.folder / "server.key")
    port = free_port()
    with socket.create_server(("0.0.0.0", port)) as server:
        done = threading.Event()

        def answer() -> None:
            while not done.is_set():
                with suppress(OSError):
                    plain, _ = server.accept()
                    with plain, context.wrap_socket(plain, server_side=True) as secure:
                        secure.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"localhost:{port}"
        done.set()
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
        thread.join()


def test_a_good_certificate_is_described(place) -> None:
    place.run("certificate")
    with serving(place) as address:
        line = check_superlink(address, place.folder / "ca.crt")
    assert f"{address} has a certificate of CN=localhost, valid from 20" in line
    assert "signed by CN=cold-flower CA" in line


def test_an_expired_certificate_gives_its_dates(place) -> None:
    place.run("certificate", DAYS="-1")
    with (
        serving(place) as address,
        pytest.raises(SiteError, match=r"to 20.* UTC; it is not trusted: it has expired"),
    ):
        check_superlink(address, place.folder / "ca.crt")


def test_another_ca_of_the_same_name(place, tmp_path) -> None:
    place.run("certificate")
    other = Place(tmp_path, DIR=tmp_path)
    other.run("ca")
    with (
        serving(place) as address,
        pytest.raises(
            SiteError, match=r"not signed by the key of CN=cold-flower CA .* wrong ca.crt"
        ),
    ):
        check_superlink(address, tmp_path / "ca.crt")


def test_a_name_that_the_certificate_does_not_have(place) -> None:
    place.run("certificate")
    with serving(place) as address, pytest.raises(SiteError, match="not valid for '127.0.0.2'"):
        check_superlink(address.replace("localhost", "127.0.0.2"), place.folder / "ca.crt")


@pytest.mark.parametrize(
    ("address", "words"),
    [("nowhere", "--superlink is HOST:PORT"), ("127.0.0.1:1", "no SuperLink answers with TLS")],
)
def test_nobody_is_there(place, address, words) -> None:
    with pytest.raises(SiteError, match=words):
        check_superlink(address, place.folder / "ca.crt")


def test_no_certificate(place, tmp_path) -> None:
    (tmp_path / "x").write_text("not PEM")
    with pytest.raises(SiteError, match="is no readable PEM certificate"):
        check_superlink("localhost:1", tmp_path / "x")
