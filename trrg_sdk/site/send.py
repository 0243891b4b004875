"""Calling a DICOM node: C-ECHO, C-STORE and the request for storage commitment, and what each answer means."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import pydicom
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made at import
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from trrg_sdk import dicom_tags as tags
from trrg_sdk.errors import DicomError
from trrg_sdk.site.config import LimitsConfig, NodeConfig
from trrg_sdk.site.send_queue import sop_uids
from trrg_sdk.site.wire import silence_pynetdicom

_REQUEST_COMMITMENT = 1  # PS3.4 J.3.2.1: the action type
_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_MAX_CONTEXTS = 126

_REJECTIONS = {  # PS3.8 9.3.4: (source, diagnostic) of the service user and of the providers
    (1, 2): "it does not know the application context",
    (1, 3): "it does not know our AE title (calling AE title not recognized)",
    (1, 7): "it does not answer to this AE title (called AE title not recognized)",
    (3, 1): "it is congested",
    (3, 2): "it has no association left (local limit exceeded)",
}
_STATUSES = {  # PS3.4 B.2.3 and PS3.7 C: the first two hexadecimal digits, or all four
    0x0110: ("later", "processing failure"),
    0x0111: ("stored", "the node had it already"),
    0x0122: ("refused", "SOP class not supported"),
    0x0124: ("refused", "not authorized"),
    0x0213: ("later", "resource limitation"),
    0xA7: ("later", "out of resources"),
    0xA8: ("refused", "SOP class not supported"),
    0xA9: ("refused", "data set does not match SOP class"),
    0xB0: ("stored", "with a warning"),
}


class Unreachable(Exception):
    """There is no association with the node, or it is over; the message says why."""


class Delivery(NamedTuple):
    """What became of an object.

    Attributes:
        outcome: ``"stored"``, ``"later"`` (worth another try) or ``"refused"`` (for good).
        reason: Why, or what the node remarked.
    """

    outcome: Literal["stored", "later", "refused"]
    reason: str = ""


def judge(status: int | None) -> Delivery:
    """What a status of C-STORE means; None stands for no answer."""
    if status is None:
        return Delivery("later", "the connection ended before the node answered")
    if status == 0:
        return Delivery("stored")
    outcome, text = _STATUSES.get(status) or _STATUSES.get(status >> 8) or ("refused", "the node cannot take it")
    return Delivery(outcome, f"status {status:04X}: {text}")  # type: ignore[arg-type]  # the table holds the three


class Call:
    """An association with a node; a context manager."""

    def __init__(
        self,
        node: NodeConfig,
        calling_aet: str,
        limits: LimitsConfig,
        *,
        files: Sequence[Path] = (),
        reported: Callable[[Any], None] | None = None,
    ) -> None:
        """Say what the call is for; :meth:`__enter__` makes it.

        Args:
            node: Whom to call.
            calling_aet: Our AE title.
            limits: How long to wait.
            files: What is to be stored, so that the node is asked for what they need.
            reported: Gets the event information of a storage commitment that comes on this association; without
                it none is asked for.
        """
        self._node, self._reported, self._answer = node, reported, threading.Event()
        self._entity = AE(ae_title=calling_aet)
        self._entity.acse_timeout = self._entity.dimse_timeout = limits.reply_timeout_s
        self._entity.connection_timeout = self._entity.network_timeout = limits.reply_timeout_s
        for sop_class, syntax in sorted({_kind(path) for path in files})[:_MAX_CONTEXTS]:
            wanted = [syntax, *(plain for plain in _PLAIN if plain != syntax)] if syntax in _PLAIN else [syntax]
            self._entity.add_requested_context(sop_class, wanted)
        self._entity.add_requested_context(StorageCommitmentPushModel if reported else Verification)
        self._association: Any = None
        self._silence = contextlib.ExitStack()

    def __enter__(self) -> Call:
        """Associate.

        Raises:
            Unreachable: The node does not answer, or rejects us.
        """
        silence_pynetdicom()
        node = self._node
        handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, self._event)] if self._reported else []
        with contextlib.ExitStack() as silence:
            silence.enter_context(tags.quiet())
            try:
                # First on our own: pynetdicom does not say why it cannot connect, and leaves the socket open.
                socket.create_connection((node.host, node.port), timeout=self._entity.connection_timeout).close()
                self._association = self._entity.associate(
                    node.host, node.port, ae_title=node.aet, evt_handlers=handlers
                )
            except OSError as error:
                why = error.strerror or str(error)
                raise Unreachable(f"no connection to {node.host} port {node.port}: {why}") from error
            if not self._association.is_established:
                raise Unreachable(self._why_not())
            self._silence = silence.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release, or abort after an error."""
        with self._silence:
            if self._association.is_established:
                (self._association.abort if kind else self._association.release)()

    def echo(self) -> str:
        """C-ECHO; says what is wrong, "" when nothing is."""
        status = getattr(self._association.send_c_echo(), "Status", None)
        return "" if status == 0 else "no answer to C-ECHO" if status is None else f"C-ECHO status {status:04X}"

    def store(self, path: Path) -> Delivery:
        """C-STORE of one file."""
        if not self._association.is_established:
            return judge(None)
        try:
            sop_class, syntax = _kind(path)
            if problem := self._not_accepted(sop_class, syntax):
                return problem
            answer = self._association.send_c_store(pydicom.dcmread(path))
        except DicomError as error:
            return Delivery("refused", str(error))
        except RuntimeError:  # the association ended meanwhile
            return judge(None)
        except (ValueError, AttributeError) as error:  # the texts may show element values
            return Delivery("refused", f"it cannot be encoded for this node ({type(error).__name__})")
        return judge(getattr(answer, "Status", None))

    @property
    def offers_commitment(self) -> bool:
        """True when the node can be asked for storage commitment."""
        return any(cx.abstract_syntax == StorageCommitmentPushModel for cx in self._association.accepted_contexts)

    def request_commitment(self, transaction_uid: str, files: Sequence[Path], *, wait_s: float) -> str:
        """Ask the node to vouch for objects, and wait a little for an answer on this association.

        Args:
            transaction_uid: Names the request.
            files: What was stored.
            wait_s: Most nodes call back instead.

        Returns:
            Why the request failed; "" when it was taken.
        """
        request = pydicom.Dataset()
        request.TransactionUID = transaction_uid
        request.ReferencedSOPSequence = [_reference(path) for path in files]
        if not self._association.is_established:
            return "the connection ended"
        answer, _ = self._association.send_n_action(
            request, _REQUEST_COMMITMENT, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        status = getattr(answer, "Status", None)
        if status == 0:
            self._answer.wait(wait_s)
            return ""
        return "no answer to N-ACTION" if status is None else f"N-ACTION status {status:04X}"

    def _event(self, event: Any) -> tuple[int, None]:
        assert self._reported is not None
        self._reported(event.event_information)
        self._answer.set()
        return 0x0000, None

    def _not_accepted(self, sop_class: str, syntax: str) -> Delivery | None:
        """Why the object cannot be sent on this association."""
        usable = set(_PLAIN) if syntax in _PLAIN else {syntax}
        contexts = [cx for cx in self._association.accepted_contexts if cx.abstract_syntax == sop_class]
        if any(cx.transfer_syntax[0] in usable for cx in contexts):
            return None
        results = {cx.result for cx in self._association.rejected_contexts if cx.abstract_syntax == sop_class}
        if not results & {3, 4}:  # PS3.8 9.3.3.2: rejected by user, or for no reason
            return Delivery("later", f"the node does not accept {UID(sop_class).name} now")
        return Delivery("refused", f"the node does not support {UID(sop_class).name} in {UID(syntax).name}")

    def _why_not(self) -> str:
        where = f"{self._node.aet} at {self._node.host} port {self._node.port}"
        if self._association.is_rejected:
            answer = self._association.acceptor.primitive
            why = _REJECTIONS.get((answer.result_source, answer.diagnostic), "no reason given")
            return f"{where} rejects the association: {why}"
        if self._association.is_aborted and self._association.acceptor.primitive is not None:
            return f"{where} accepts none of what we ask for"
        return f"no DICOM answer from {where}"


def echo(node: NodeConfig, calling_aet: str, limits: LimitsConfig) -> str:
    """C-ECHO to a node.

    Returns:
        What is wrong; "" when it answers.
    """
    try:
        with Call(node, calling_aet, limits) as call:
            return call.echo()
    except Unreachable as error:
        return str(error)


def _kind(path: Path) -> tuple[str, str]:
    sop_class, _, syntax = sop_uids(path)
    return sop_class, syntax


def _reference(path: Path) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID, _ = sop_uids(path)
    return item
