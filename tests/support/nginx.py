"""A real nginx in front of an S3 server: the locations that are shipped, over HTTP and TLS."""

import shutil
import socket
import subprocess
import tempfile
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SHIPPED = Path(__file__).resolve().parents[2] / "etc/nginx/files.conf"
PROGRAM = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin") or "nginx"

_CONFIG = """
daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    server {{
        listen 127.0.0.1:{http}; listen 127.0.0.1:{https} ssl;
        ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;
        {locations}
    }}
}}
"""


class Nginx:
    """One nginx that is `localhost` on two ports; `/` keeps the Host, `/files/` restores it."""

    def __init__(self, endpoint: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="nginx-", dir="/tmp"))
        self._folder.chmod(0o755)
        self.ca = self._folder / "cert.pem"
        self._endpoint = endpoint.removeprefix("http://")
        self._process: subprocess.Popen[bytes] | None = None
        self.http, self.https = _free_port(), _free_port()

    def base(self, scheme: str, sign_host: str) -> str:
        """Return S3_PUBLIC_BASE_URL for a way of signing."""
        port = self.https if scheme == "https" else self.http
        return f"{scheme}://localhost:{port}" + ("/files" if sign_host == "endpoint" else "")

    def __enter__(self) -> Self:
        certify(self._folder)
        shipped = SHIPPED.read_text()
        assert shipped.count("10.0.0.5:9000") == 4
        config = _CONFIG.format(
            dir=self._folder,
            http=self.http,
            https=self.https,
            locations=shipped.replace("10.0.0.5:9000", self._endpoint),
        )
        (self._folder / "nginx.conf").write_text(config)
        log = self._folder / "error.log"
        self._process = subprocess.Popen(
            [PROGRAM, "-p", str(self._folder), "-e", str(log), "-c", "nginx.conf"],
            cwd=self._folder, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + 20
        while not all(_listening(port) for port in (self.http, self.https)):
            if self._process.poll() is not None or time.monotonic() > end:
                said = log.read_text()
                self.__exit__(None, None, None)
                raise RuntimeError(f"nginx did not start:\n{said}")
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)


def certify(folder: Path) -> None:
    """Write a certificate for localhost that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    today = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
