"""What a hostile or broken peer may do to pynetdicom's acceptor is bounded here: sizes, times, and what is kept where.

pynetdicom reads a protocol data unit of any length, waits for ever for the rest of one, and collects messages in
memory; its own chunked mode writes objects to the system's temporary folder, without a limit. So an association gets
a socket and a DIMSE provider of ours. The rest of it is untouched.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from io import BytesIO
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any, cast

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dsutils import create_file_meta
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from trrg_sdk.site.landing import Bounded, FloodError, Landing

if TYPE_CHECKING:
    import socket

    from pydicom.uid import UID
    from pynetdicom.association import Association

    from trrg_sdk.site.config import LimitsConfig
    from trrg_sdk.site.spool import Spool

_LOG = logging.getLogger(__name__)
_MAX_NEGOTIATION = 256 * 1024  # an A-ASSOCIATE-RQ with 128 contexts of 30 transfer syntaxes has 120 kB
_MAX_COMMAND = 64 * 1024
_MAX_OTHER_DATA = 2**20  # the event information of a storage commitment
_MAX_UNANSWERED = 4  # we negotiate one outstanding operation; a peer that sends on regardless is cut off


def silence_pynetdicom() -> None:
    """Keep pynetdicom's log messages, which show UIDs and dump messages, to itself; what matters is logged here."""
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True)
class Bounds:
    """Where objects go and how much a peer may send."""

    spool: Spool
    limits: LimitsConfig


class StoredData(BytesIO):
    """The data set of a message: in the spool when it is an object to store, else in memory.

    Attributes:
        landing: The object, once some of it has come.
    """

    def __init__(self, provider: SpoolingProvider, message: DIMSEMessage) -> None:
        """Wait for the first piece."""
        super().__init__()
        self._provider, self._message, self._other = provider, message, Bounded(_MAX_OTHER_DATA)
        self.landing: Landing | None = None

    def write(self, data: Any, /) -> int:
        """Called by pynetdicom with each piece of the data set."""
        piece = memoryview(data)
        if not isinstance(self._message, C_STORE_RQ):
            self._other.write(piece)
            return super().write(piece)
        if self.landing is None:
            self.landing = self._provider.land(self._message)
        self.landing.write(piece)
        return piece.nbytes


class SpoolingProvider(DIMSEServiceProvider):
    """Reassembles messages, objects to store straight into the spool."""

    def __init__(self, assoc: Association, bounds: Bounds) -> None:
        """Serve one association."""
        super().__init__(assoc)
        self._bounds = bounds
        self._landings: list[Landing] = []

    def receive_primitive(self, primitive: Any) -> None:
        """Take a piece of a message; what is no message, or too much, ends the association."""
        try:
            if self.message is None:
                if self.msg_queue.qsize() >= _MAX_UNANSWERED:
                    raise FloodError
                self.message = DIMSEMessage()
                self.message.encoded_command_set = Bounded(_MAX_COMMAND)
                self.message.data_set = StoredData(self, self.message)
            super().receive_primitive(primitive)
        except Exception as error:  # of any kind: the bytes are the peer's
            _LOG.warning("ending an association: its peer sent what cannot be received (%s)", type(error).__name__)
            self.dul.event_queue.put("Evt19")  # PS3.8 9.2: unrecognized or invalid PDU, the answer is A-ABORT

    def land(self, message: DIMSEMessage) -> Landing:
        """Begin an object in the spool.

        Raises:
            OSError: No file can be made.
        """
        from pydicom.filebase import DicomBytesIO
        from pydicom.filewriter import write_file_meta_info

        command, accepted = message.command_set, self.assoc._accepted_cx[cast(int, message.context_id)]
        head = DicomBytesIO()
        head.write(b"\0" * 128 + b"DICM")
        meta = create_file_meta(
            sop_class_uid=cast("UID", command.AffectedSOPClassUID),
            sop_instance_uid=cast("UID", command.AffectedSOPInstanceUID),
            transfer_syntax=accepted.transfer_syntax[0],
        )
        write_file_meta_info(head, meta)
        limits = self._bounds.limits
        landing = Landing(
            self._bounds.spool,
            head.getvalue(),
            max_bytes=limits.object_mib * 2**20,
            max_seconds=limits.object_timeout_s,
        )
        self._landings.append(landing)
        return landing

    def forget(self) -> None:
        """Delete what was received and not taken into a study; for when the association has ended."""
        for landing in self._landings:
            landing.discard()
        self._landings.clear()

    def release(self, landing: Landing) -> None:
        """The landing was taken or refused: nothing of it is left to delete."""
        landing.discard()
        self._landings.remove(landing)


class BoundedSocket(AssociationSocket):
    """Reads a protocol data unit of a bounded length within a bounded time."""

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes; fewer when the peer closed the connection.

        Raises:
            OSError: So many are not accepted, or they took too long.
        """
        assoc, connection = self.assoc, cast("socket.socket", self.socket)
        if nr_bytes > max(assoc.acceptor.maximum_length or 0, _MAX_NEGOTIATION):
            raise OSError("a protocol data unit longer than what was negotiated")
        patience = assoc.network_timeout or 60.0
        deadline, received = time.monotonic() + patience, bytearray()
        try:
            while len(received) < nr_bytes:
                if (left := deadline - time.monotonic()) <= 0:
                    raise TimeoutError("a protocol data unit that came too slowly")
                connection.settimeout(left)
                piece = connection.recv(min(nr_bytes - len(received), 65_536))
                if not piece:
                    break
                received += piece
        finally:
            connection.settimeout(patience)
        return received


class BoundedRequestHandler(RequestHandler):
    """Gives each association our socket and our provider before it starts."""

    server: BoundedServer

    def _create_association(self) -> Association:
        assoc = super()._create_association()
        cast(
            AssociationSocket, assoc.dul.socket
        ).__class__ = BoundedSocket  # it has sent its event; a new one sends two
        assoc.dimse = SpoolingProvider(assoc, self.server.bounds)
        return assoc


class BoundedServer(ThreadedAssociationServer):
    """Accepts connections from peers that may, and not more of them than we can serve."""

    daemon_threads = True
    bounds: Bounds
    may_connect: Any

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Called by socketserver before anything is read; False closes the connection.

        A peer over the limit of associations is told so in the negotiation; only a flood of them is cut off here.
        """
        if not self.may_connect(client_address[0]):
            _LOG.warning("refused a connection from %s: it is not among the peers", client_address[0])
            return False
        return len(self.active_associations) < 2 * self.ae.maximum_associations + 8

    def shutdown(self) -> None:
        """Stop listening; running associations go on, which pynetdicom's own shutdown of the entity would abort."""
        BaseServer.shutdown(self)
        self.server_close()
