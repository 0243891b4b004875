"""The Storage SCP: radiographs that peers send by C-STORE become complete studies in a spool.

Success is answered only once an object is on the disk. A study is handed over when the associations that carried it
have ended and nothing more came for a while; what is not complete when the process ends is taken up by the next one.
Log lines hold hashed names, AE titles and addresses, and nothing of an object's content.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made at import
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
    StorageCommitmentPushModel,
    Verification,
)

from trrg_sdk import dicom_tags as tags
from trrg_sdk.errors import DicomError, UsageError
from trrg_sdk.site.config import LimitsConfig, ReceiveConfig
from trrg_sdk.site.header import is_uid, read_header
from trrg_sdk.site.landing import Landing
from trrg_sdk.site.spool import Spool, hashed
from trrg_sdk.site.wire import (
    BoundedRequestHandler,
    BoundedServer,
    Bounds,
    SpoolingProvider,
    StoredData,
    silence_pynetdicom,
)

_LOG = logging.getLogger(__name__)

SOP_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)
TRANSFER_SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEG2000Lossless,
    JPEGLSLossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    RLELossless,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEG2000,
    JPEGLSNearLossless,
)
"""What the runtime decodes; lossless ones stand first, so that a peer that offers several sends one of them."""

_EXPIRE_EVERY_S = 600.0
_NEGOTIATION_S = 10.0  # a connection that asks for no association holds one of the few places

SUCCESS = 0x0000
# PS3.4 B.2.3 and PS3.7 9.1.1.1.9.
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
INVALID_SOP_INSTANCE = 0x0117
SOP_CLASS_NOT_SUPPORTED = 0x0122


class Refused(Exception):
    """An object that is not taken: its status and why."""

    def __init__(self, status: int, why: str) -> None:
        """Keep the status."""
        super().__init__(why)
        self.status = status


class Receiver:
    """A Storage SCP that fills a spool."""

    def __init__(
        self,
        config: ReceiveConfig,
        limits: LimitsConfig,
        *,
        committed: Callable[[Any], None] | None = None,
    ) -> None:
        """Take possession of the spool; nothing listens yet.

        Args:
            config: Where to listen, who may call, where the spool is.
            limits: What a peer may take.
            committed: Gets the event information of each N-EVENT-REPORT of storage commitment; without it none is
                accepted.

        Raises:
            UsageError: The spool cannot be used.
        """
        self._config, self._committed = config, committed
        self._networks = config.networks()
        self.spool = Spool(config.spool, study_timeout_s=config.study_timeout_s, free_bytes=limits.free_mib * 2**20)
        self._bounds = Bounds(self.spool, limits)
        self._server: BoundedServer | None = None
        self._expire_at = 0.0
        self._providers: dict[Any, SpoolingProvider] = {}
        self._silence = contextlib.ExitStack()

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        assert self._server is not None
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen, in a thread of its own.

        Raises:
            UsageError: The address or port cannot be used.
        """
        silence_pynetdicom()
        self._silence.enter_context(tags.quiet())
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, lambda event: SUCCESS),
            (evt.EVT_C_STORE, self._stored),
            (evt.EVT_N_EVENT_REPORT, self._reported),
            (evt.EVT_CONN_OPEN, self._connected),
            (evt.EVT_CONN_CLOSE, _closed),
            (evt.EVT_ACCEPTED, lambda event: _LOG.info("association from %s", _peer(event))),
            (evt.EVT_REJECTED, lambda event: _LOG.warning("rejected an association from %s", _peer(event))),
        ]
        where = (self._config.bind, self._config.port)
        try:
            server = self._entity().make_server(
                where, evt_handlers=handlers, server_class=BoundedServer, request_handler=BoundedRequestHandler
            )
        except OSError as error:
            self.close()
            raise UsageError(
                f"cannot listen on {where[0]} port {where[1]}: {error.strerror}; choose another --bind or --port"
            ) from error
        self._server = cast(BoundedServer, server)
        self._server.bounds, self._server.may_connect = self._bounds, self._may_connect
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="receiver", daemon=True).start()
        _LOG.info("listening as %s on %s port %d", self._config.aet, where[0], self.port)

    def tick(self) -> None:
        """Hand over complete studies, and clean up after associations that have ended; call it every second or so."""
        for assoc, provider in list(self._providers.items()):
            if not assoc.is_alive():
                provider.forget()
                del self._providers[assoc]
        try:
            for folder in self.spool.complete():
                _LOG.info("study %s is complete", folder.name)
            if self._config.keep_days is not None and time.monotonic() >= self._expire_at:
                self._expire_at = time.monotonic() + _EXPIRE_EVERY_S
                _LOG.info(
                    "deleted %d studies that were older than receive.keep_days",
                    self.spool.expire(self._config.keep_days),
                )
        except OSError as error:
            _LOG.error("cannot tidy the spool: %s; trying again", error.strerror)

    def run(self, stop: threading.Event) -> None:
        """Receive until told to stop, then stop gracefully."""
        while not stop.wait(0.5):
            self.tick()
        self.stop()

    def stop(self) -> None:
        """Accept nothing more, let running associations end for a bounded time, and leave the spool to others."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            deadline = time.monotonic() + self._config.stop_timeout_s
            while server.active_associations and time.monotonic() < deadline:
                time.sleep(0.05)
            for assoc in server.active_associations:
                _LOG.warning("aborting an association that did not end in time")
                assoc.abort()
        self.tick()
        _LOG.info("stopped; %d studies are not complete and will be resumed", self.spool.waiting())
        self.close()

    def close(self) -> None:
        """Let another process use the spool."""
        for provider in self._providers.values():
            provider.forget()
        self.spool.close()
        self._silence.close()

    def _entity(self) -> AE:
        limits = self._bounds.limits
        entity = AE(ae_title=self._config.aet)
        for sop_class in SOP_CLASSES:
            entity.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
        entity.add_supported_context(Verification)
        if self._committed:  # the peer that reports a commitment calls us, yet stays the SCP (PS3.4 J.3.3)
            entity.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        entity.require_called_aet = True
        entity.require_calling_aet = list(self._config.calling_aets)
        entity.maximum_associations = limits.associations
        entity.maximum_pdu_size = limits.pdu_bytes
        entity.network_timeout = limits.network_timeout_s
        entity.acse_timeout = min(limits.network_timeout_s, _NEGOTIATION_S)
        entity.dimse_timeout = limits.reply_timeout_s
        return entity

    def _may_connect(self, address: str) -> bool:
        peer = ipaddress.ip_address(address.partition("%")[0])
        peer = getattr(peer, "ipv4_mapped", None) or peer
        return not self._networks or any(peer in network for network in self._networks)

    def _connected(self, event: Any) -> None:
        self._providers[event.assoc] = event.assoc.dimse

    def _reported(self, event: Any) -> tuple[int, None]:
        if self._committed is not None:
            self._committed(event.event_information)
        return SUCCESS, None

    def _stored(self, event: Any) -> int:
        """Answer a C-STORE request: the status."""
        landing = event.request.DataSet.landing if isinstance(event.request.DataSet, StoredData) else None
        try:
            if landing is None:
                raise Refused(CANNOT_UNDERSTAND, "there is no data set")
            new = self._take(event, landing)
            _LOG.info("object %s %s", hashed(event.request.AffectedSOPInstanceUID), "stored" if new else "is known")
            return SUCCESS
        except Refused as refused:
            _LOG.warning("refused an object from %s with status %04X: %s", _peer(event), refused.status, refused)
            return refused.status
        except OSError as error:
            _LOG.error("cannot store an object: %s", error.strerror)
            return OUT_OF_RESOURCES
        finally:
            if landing is not None:
                event.assoc.dimse.release(landing)

    def _take(self, event: Any, landing: Landing) -> bool:
        """Check an object and take it into its study; False when it was there already."""
        sop_class, instance = event.request.AffectedSOPClassUID, event.request.AffectedSOPInstanceUID
        if failure := landing.finish():
            raise Refused(OUT_OF_RESOURCES, failure)
        if sop_class != event.context.abstract_syntax:
            raise Refused(SOP_CLASS_NOT_SUPPORTED, "its SOP class is not that of its presentation context")
        if not is_uid(instance):
            raise Refused(INVALID_SOP_INSTANCE, "its SOP Instance UID breaks the rules for UIDs")
        try:
            header = read_header(landing.path, landing.offset, event.context.transfer_syntax)
        except DicomError as error:
            raise Refused(CANNOT_UNDERSTAND, str(error)) from error
        if (header.sop_class_uid, header.sop_instance_uid) != (sop_class, instance):
            raise Refused(DATA_SET_DOES_NOT_MATCH, "its data set names another SOP class or instance than the request")
        if not header.study_instance_uid:
            raise Refused(CANNOT_UNDERSTAND, "it has no valid Study Instance UID")
        return self.spool.place(landing.path, header.study_instance_uid, instance, event.assoc)


def _closed(event: Any) -> None:
    """Free the place of a connection that was closed before it asked for an association (a probe of the port)."""
    if event.assoc.requestor.primitive is None:
        event.assoc.dul.to_user_queue.put(None)


def _peer(event: Any) -> str:
    requestor = event.assoc.requestor
    return f"{requestor.ae_title!r} at {requestor.address}"
