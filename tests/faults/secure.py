"""A mosquitto with mutual TLS, and a device's identity for it, of a real authority."""

import contextlib
import os
import socket
import subprocess
import time

from edgeml import keypair
from edgeml.port import free_port
from edgeml.tls import TlsFiles
from fleet import authority

from ..waiting import wait_for

DAY_MS = 86_400_000


class SecureBroker:
    """Listens for devices on `tls_port`, where the certificate is the login, and for everybody on `port`."""

    def __init__(self, directory, device="cam-1"):
        now_ms = time.time_ns() // 1_000_000
        made = authority.ensure(directory / "authority", now_ms)
        server, ca, identity = directory / "server.pem", directory / "ca.pem", directory / "identity.pem"
        ca.write_text(made.pem)
        key = keypair.generate()
        certificate = authority.issue_device(
            made, keypair.read_request(keypair.request(key, device)), device, now_ms, 30 * DAY_MS
        )
        for path, content in (
            (server, authority.issue_server(made, ["localhost", "127.0.0.1"], now_ms)),
            (identity, key + certificate.encode()),
        ):
            path.touch(0o600)
            path.write_bytes(content)
        self.files = TlsFiles(ca, identity)
        self.port, self.tls_port = free_port(), free_port()
        settings, self.log = directory / "secure.conf", directory / "secure.log"
        settings.write_text(
            f"per_listener_settings true\nmax_keepalive 1800\nset_tcp_nodelay true\n"
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\n"
            f"listener {self.tls_port} 127.0.0.1\nallow_anonymous false\n"
            f"cafile {ca}\ncertfile {server}\nkeyfile {server}\nrequire_certificate true\n"
            "use_identity_as_username true\ntls_version tlsv1.2\n"
            + ("user root\n" if os.geteuid() == 0 else "")
        )
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(["mosquitto", "-c", settings], stdout=out, stderr=out)
        wait_for(self._listens, "the broker")

    def _listens(self):
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.tls_port), 1):
            return True
        return False

    def close(self):
        self.process.terminate()
        self.process.wait(60)
