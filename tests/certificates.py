"""A private authority and a certificate of it, for tests that speak TLS."""

import shutil
import ssl
import subprocess

import pytest

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="no openssl command to make certificates with")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A private authority and a certificate of it for 127.0.0.1: (path of the bundle, server context)."""
    folder = tmp_path_factory.mktemp("tls")

    def run(*arguments):
        subprocess.run([OPENSSL] + list(arguments), cwd=str(folder), check=True, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    run("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=private CA",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    run("req", *curve, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1")
    (folder / "names").write_text(
        "subjectAltName=IP:127.0.0.1,DNS:gpu.example\nauthorityKeyIdentifier=keyid\nbasicConstraints=CA:FALSE\n")
    run("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out",
        "server.pem", "-days", "2", "-extfile", "names")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(folder / "server.pem"), str(folder / "server.key"))
    return str(folder / "ca.pem"), context


def tls(server):
    return server.url.replace("http:", "https:")
