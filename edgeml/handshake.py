"""Why a TLS server and this device do not come together.

Decides which alerts mean what for a person. A handshake alone is made and nothing is said after it: a client that has
already sent something may lose the server's alert with the connection, and sees only that it was cut.
"""

from __future__ import annotations

import enum
import socket
import ssl
from dataclasses import dataclass
from typing import Final

from .tls import TlsFiles, client_context

CONNECT_TIMEOUT_S: Final = 10.0
ALERT_WAIT_S: Final = 2.0
"""In TLS 1.3 the server judges the client's certificate after the client takes the handshake for done."""


class Fault(enum.Enum):
    """What is wrong."""

    EXPIRED = "the device's certificate has expired"
    REVOKED = "the device's certificate was revoked"
    OTHER_AUTHORITY = "the device's certificate is of another authority"
    NO_CERTIFICATE = "the server wants a certificate"
    SERVER = "the server is not certified by the fleet's authority"
    HUNG_UP = "the server hangs up when it has seen the device's certificate"
    """Python's own servers (the HTTPS server, amqtt) do that without an alert, whatever was wrong."""
    OTHER = "the server refuses the connection"


_ALERTS: Final = {
    "CERTIFICATE_EXPIRED": Fault.EXPIRED,
    "CERTIFICATE_REVOKED": Fault.REVOKED,
    "UNKNOWN_CA": Fault.OTHER_AUTHORITY,
    "DECRYPT_ERROR": Fault.OTHER_AUTHORITY,  # an authority of the same name, but of another key
    "CERTIFICATE_REQUIRED": Fault.NO_CERTIFICATE,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is wrong, and the TLS library's words for it."""

    fault: Fault
    detail: str


def find_refusal(address: tuple[str, int], files: TlsFiles) -> Refusal | None:
    """Make a handshake with a server and say what was wrong with it; None if nothing was.

    Args:
        address: host and port.
        files: authority and identity of this device.

    Raises:
        ConfigError: The files cannot be used.
        OSError: The server cannot be reached at all.
    """
    context = client_context(files)
    with socket.create_connection(address, CONNECT_TIMEOUT_S) as raw:
        try:
            with context.wrap_socket(raw, server_hostname=address[0]) as link:
                link.settimeout(ALERT_WAIT_S)
                said = link.recv(1)
        except TimeoutError:
            # It waits for us to speak.
            return None
        except ssl.SSLCertVerificationError as error:
            return Refusal(Fault.SERVER, error.verify_message)
        except ssl.SSLEOFError:
            return Refusal(Fault.HUNG_UP, "no alert")
        except ssl.SSLError as error:
            reason = error.reason or str(error)
            found = (fault for end, fault in _ALERTS.items() if reason.endswith(end))
            return Refusal(next(found, Fault.OTHER), reason.lower().replace("_", " "))
        except ConnectionError as error:
            return Refusal(Fault.HUNG_UP, error.strerror or "cut")
    return None if said else Refusal(Fault.HUNG_UP, "no alert")
