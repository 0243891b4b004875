"""Storage commitment with peers that answer in every way the standard leaves open (PS3.4 J.3.3)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="needs the extra site")

from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from tests.sdk.chest_dicom import DX, chest_bytes
from tests.site.peers import LOCAL, free_port, until
from trrg_sdk.site.config import LimitsConfig, NodeConfig, OutputsConfig, ReceiveConfig, SiteConfig
from trrg_sdk.site.courier import Courier
from trrg_sdk.site.receive import Receiver
from trrg_sdk.site.send_queue import Item, SendQueue

Answer = Callable[[Any, pydicom.Dataset], None]


def information(request: pydicom.Dataset, *, lost: int | None = None) -> pydicom.Dataset:
    """The answer to a request: everything is kept, or everything is lost for one reason."""
    answer = pydicom.Dataset()
    answer.TransactionUID = request.TransactionUID
    answer.ReferencedSOPSequence = [] if lost else list(request.ReferencedSOPSequence)
    if lost:
        answer.FailedSOPSequence = list(request.ReferencedSOPSequence)
        for item in answer.FailedSOPSequence:
            item.FailureReason = lost
    return answer


@contextmanager
def pacs(answer: Answer, status: int = 0x0000) -> Iterator[int]:
    """A peer that stores, takes requests for commitment with a status, and then answers in its way."""
    threads = []

    def requested(event: Any) -> tuple[int, None]:
        thread = threading.Timer(0.2, answer, (event.assoc, event.action_information))
        threads.append(thread)
        thread.start()
        return status, None

    entity, port = AE("PACS"), free_port()
    entity.add_supported_context(DX)
    entity.add_supported_context(StorageCommitmentPushModel)
    handlers: list[Any] = [(evt.EVT_C_STORE, lambda event: 0x0000), (evt.EVT_N_ACTION, requested)]
    server = entity.start_server((LOCAL, port), block=False, evt_handlers=handlers)
    try:
        yield port
    finally:
        for thread in threads:
            thread.join()
        server.shutdown()


def same_association(association: Any, request: pydicom.Dataset) -> None:
    association.send_n_event_report(
        information(request), 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )


def calling_back(port: int, *, with_role: bool, lost: int | None = None) -> Answer:
    def answer(_: Any, request: pydicom.Dataset) -> None:
        entity = AE("PACS")
        entity.add_requested_context(StorageCommitmentPushModel)
        roles = [build_role(StorageCommitmentPushModel, scp_role=True)] if with_role else []
        association = entity.associate(LOCAL, port, ae_title="TRRG", ext_neg=roles)
        assert association.is_established
        association.send_n_event_report(
            information(request, lost=lost),
            2 if lost else 1,
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )
        association.release()

    return answer


@contextmanager
def site(folder: Path, pacs_port: int, own_port: int) -> Iterator[Courier]:
    config = SiteConfig(
        outputs=OutputsConfig(folder=folder / "out"),
        receive=ReceiveConfig(spool=folder / "spool", port=own_port, stop_timeout_s=5.0),
        limits=LimitsConfig(free_mib=0, reply_timeout_s=5.0),
        nodes=(NodeConfig("pacs", "PACS", LOCAL, pacs_port),),
    )
    courier, stop = Courier(config, SendQueue(config.queue_file, config.queue)), threading.Event()
    assert config.receive is not None
    receiver = Receiver(config.receive, config.limits, committed=courier.reported)
    receiver.start()
    thread = threading.Thread(target=receiver.run, args=(stop,))
    thread.start()
    (folder / "a.dcm").write_bytes(chest_bytes())
    courier.queue.enqueue(folder / "a.dcm", "pacs")
    try:
        yield courier
    finally:
        stop.set()
        thread.join(timeout=30)


def only(courier: Courier) -> Item:
    (item,) = courier.queue.items()
    return item


def test_an_answer_on_the_same_association(tmp_path: Path) -> None:
    with pacs(same_association) as port, site(tmp_path, port, free_port()) as courier:
        courier.round()
        until(lambda: only(courier).state == "committed")


@pytest.mark.parametrize("with_role", [True, False])
def test_an_answer_by_a_call_back_with_and_without_role_negotiation(tmp_path: Path, with_role: bool) -> None:
    own_port = free_port()
    with pacs(calling_back(own_port, with_role=with_role)) as port, site(tmp_path, port, own_port) as courier:
        courier.round()
        until(lambda: only(courier).state == "committed")


@pytest.mark.parametrize(("reason", "state"), [(0x0112, "waiting"), (0x0213, "waiting"), (0x0122, "uncommitted")])
def test_what_a_failure_reason_makes_of_an_object(tmp_path: Path, reason: int, state: str) -> None:
    own_port = free_port()
    answer = calling_back(own_port, with_role=True, lost=reason)
    with pacs(answer) as port, site(tmp_path, port, own_port) as courier:
        courier.round()
        until(lambda: only(courier).state == state)
        assert f"reason {reason:04X}" in only(courier).note


def test_an_answer_to_a_request_that_nobody_made_changes_nothing(tmp_path: Path) -> None:
    own_port, stranger = free_port(), pydicom.Dataset()
    stranger.TransactionUID = "2.25.1"
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = DX, "2.25.1001"
    stranger.ReferencedSOPSequence = [item]
    with pacs(lambda *_: None) as port, site(tmp_path, port, own_port) as courier:
        courier.round()
        calling_back(own_port, with_role=True)(None, stranger)
        assert only(courier).state == "requested"


def test_a_request_that_the_node_does_not_take_leaves_the_object_to_be_asked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pacs(lambda *_: None, status=0x0110) as port, site(tmp_path, port, free_port()) as courier:
        courier.round()
        assert (only(courier).state, only(courier).asked) == ("requested", 1)
    assert "N-ACTION status 0110" in caplog.text
