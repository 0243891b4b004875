"""Carries the queue to its nodes, round after round, in one thread of one process."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from pydicom.uid import generate_uid

from trrg_sdk import dicom_tags as tags
from trrg_sdk.errors import DicomError, TrrgError
from trrg_sdk.site.config import NodeConfig, SiteConfig
from trrg_sdk.site.send import Call, Unreachable
from trrg_sdk.site.send_queue import Item, SendQueue, sop_uids

_LOG = logging.getLogger(__name__)
_WAIT_FOR_COMMITMENT_S = 1.0
_NOT_OFFERED = "the node offers no storage commitment"


class Courier:
    """Sends what is due.

    Attributes:
        queue: What it carries.
    """

    def __init__(self, site: SiteConfig, queue: SendQueue) -> None:
        """Know the nodes."""
        self._site, self.queue = site, queue
        self._nodes = {node.name: node for node in site.nodes}

    def run(self, stop: threading.Event, *, pause_s: float = 1.0) -> None:
        """Send until told to stop; the object at hand is finished."""
        while not stop.is_set():
            try:
                self.round(stop)
            except TrrgError as error:  # a full disk, say: the queue is as it was
                _LOG.error("cannot send: %s", error)
            stop.wait(pause_s)

    def round(self, stop: threading.Event | None = None) -> None:
        """Send what is due, and ask again for commitments that did not come; nothing while another process does."""
        with self._alone() as alone:
            if not alone:
                return
            for name, items in _by_destination(self.queue.due()):
                node = self._nodes.get(name)
                if node is None:
                    for item in items:
                        self.queue.failed(item, "the configuration has no node of this name")
                elif stop is None or not stop.is_set():
                    self._deliver(node, self._readable(items), stop)
            for name, items in _by_destination(self.queue.overdue()):
                again = [item for item in items if self.queue.unanswered(item, "no answer came in time")]
                if again and name in self._nodes:
                    self._ask_again(self._nodes[name], again)

    def reported(self, information: Any) -> None:
        """Take the event information of a storage commitment (PS3.4 J.3.3), from whichever association it came."""
        kept = [tags.uid(item, "ReferencedSOPInstanceUID") for item in information.get("ReferencedSOPSequence") or ()]
        lost = {
            tags.uid(item, "ReferencedSOPInstanceUID"): tags.integer(item, "FailureReason", default=0x0110)
            for item in information.get("FailedSOPSequence") or ()
        }
        self.queue.answered(tags.uid(information, "TransactionUID"), kept, lost)

    def _readable(self, items: Sequence[Item]) -> list[Item]:
        """Those whose file is still what it was; the others have failed."""
        found = []
        for item in items:
            try:
                sop_uids(item.path)
                found.append(item)
            except DicomError as error:
                self.queue.failed(item, str(error))
        return found

    def _deliver(self, node: NodeConfig, items: Sequence[Item], stop: threading.Event | None) -> None:
        if not items:
            return
        files = [item.path for item in items]
        reported = self.reported if node.commitment else None
        left = list(items)
        try:
            with Call(node, self._site.calling_aet, self._site.limits, files=files, reported=reported) as call:
                stored = []
                while left and not (stop is not None and stop.is_set()):
                    if self._store(call, left[0]):
                        stored.append(left[0])
                    left.pop(0)
                if stored and call.offers_commitment:
                    self._ask(call, stored)
        except Unreachable as error:
            for item in left:
                self.queue.later(item, str(error))

    def _store(self, call: Call, item: Item) -> bool:
        delivery = call.store(item.path)
        if delivery.outcome == "stored":
            _LOG.info("object %s stored at %s", item.instance, item.destination)
            if call.offers_commitment:
                self.queue.to_be_asked(item)
            else:
                self.queue.stored(
                    item, delivery.reason or (_NOT_OFFERED if self._nodes[item.destination].commitment else "")
                )
        elif delivery.outcome == "later":
            self.queue.later(item, delivery.reason)
        else:
            self.queue.failed(item, delivery.reason)
        return delivery.outcome == "stored"

    def _ask(self, call: Call, items: Sequence[Item]) -> None:
        """Ask for storage commitment."""
        transaction = str(generate_uid(prefix="2.25."))
        self.queue.requested(items, transaction)
        problem = call.request_commitment(transaction, [item.path for item in items], wait_s=_WAIT_FOR_COMMITMENT_S)
        if problem:
            _LOG.warning("%s was asked for storage commitment: %s", items[0].destination, problem)

    def _ask_again(self, node: NodeConfig, items: Sequence[Item]) -> None:
        """Ask once more; what cannot be asked for counts as asked, so that this ends."""
        try:
            with Call(node, self._site.calling_aet, self._site.limits, reported=self.reported) as call:
                self._ask(call, items)
        except (Unreachable, DicomError) as error:
            _LOG.warning("cannot ask %s for storage commitment: %s", node.name, error)
            self.queue.requested(items, None)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """True when no other process carries this queue."""
        with self.queue.path.with_suffix(".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _by_destination(items: Iterable[Item]) -> list[tuple[str, list[Item]]]:
    ordered = sorted(items, key=lambda item: item.destination)
    return [(name, list(group)) for name, group in groupby(ordered, key=lambda item: item.destination)]
