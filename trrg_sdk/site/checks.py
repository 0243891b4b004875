"""Does a site's configuration work here? Each folder, port, format and node is tried; every failure has a reason."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from trrg_sdk.errors import BundleError, TrrgError
from trrg_sdk.manifest import Manifest
from trrg_sdk.site.config import NodeConfig, ReceiveConfig, SiteConfig
from trrg_sdk.site.spool import READY

NEEDS_EXTRA = "pynetdicom is not installed: pip install 'trrg-sdk[site]'"


class Check(NamedTuple):
    """One thing that was tried.

    Attributes:
        what: Its name.
        verdict: ``"ok"``, ``"warning"`` (it works, look at it all the same) or ``"FAILED"``.
        reason: What was found.
    """

    what: str
    verdict: Literal["ok", "warning", "FAILED"]
    reason: str


def check_site(site: SiteConfig) -> Iterator[Check]:
    """Try everything that a configuration names; nothing is made or changed."""
    yield _tried("bundle", lambda: _bundle(site))
    yield _tried("device", lambda: _device(site))
    for name in site.outputs.formats:
        yield _tried(f"format {name}", lambda name=name: _format(name))  # type: ignore[misc]
    yield _folder("outputs", site.outputs.folder, site.limits.free_mib)
    yield _watched(site)
    if site.receive is not None:
        yield _folder("spool", site.receive.spool, site.limits.free_mib)
        yield _listener(site, site.receive)
        yield _exposure(site.receive)
    if site.nodes:
        yield _queue(site)
    for node in site.nodes:
        yield _node(site, node)


def _tried(what: str, attempt: Callable[[], str]) -> Check:
    try:
        return Check(what, "ok", attempt())
    except TrrgError as error:
        return Check(what, "FAILED", str(error))


def _manifest(site: SiteConfig) -> Manifest:
    from trrg_sdk.bundle import Bundle

    return (Bundle.load(site.model.bundle) if site.model.bundle else Bundle.embedded()).manifest


def _bundle(site: SiteConfig) -> str:
    return f"{_manifest(site).bundle_id}; every hash agrees"


def _device(site: SiteConfig) -> str:
    """Does it work, and does it run this bundle?"""
    from trrg_sdk.backends import open_backend, suited

    device = site.model.device
    opened = open_backend(device=device)
    with suppress(BundleError):  # said already
        opened = suited(opened, _manifest(site), device=device)
    return opened.name


def _format(name: str) -> str:
    from trrg_sdk.outputs import open_output

    return f"writes {open_output(name).EXTENSION}"


def _folder(what: str, folder: Path, free_mib: int) -> Check:
    """May this user write there, and is there room? The folder itself is made when it is first used."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check(what, "FAILED", f"{there} is no folder that this user may write to")
    free = shutil.disk_usage(there).free // 2**20
    if free < free_mib:
        return Check(what, "FAILED", f"{folder}: {free} MiB are free, limits.free_mib = {free_mib} are to be kept")
    return Check(what, "ok", f"{folder}: {free} MiB free{'' if there == folder else '; it will be made'}")


def _watched(site: SiteConfig) -> Check:
    folder, ready = site.watched, site.receive.spool / READY if site.receive else None
    if folder is None:
        return Check("watch", "ok", "nothing to watch: watch.folder and receive are left out")
    if ready is not None and ready != folder:
        return Check("watch", "warning", f"nobody reads what is received: watch.folder is not {ready}")
    if folder == ready and not folder.exists():
        return Check("watch", "ok", f"{folder}: it will be made")
    if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
        return Check("watch", "ok", str(folder))
    return Check("watch", "FAILED", f"{folder} is no folder that this user may read")


def _listener(site: SiteConfig, receive: ReceiveConfig) -> Check:
    """Is the port free, or is it our own receiver that has it?"""
    what = f"port {receive.port}"
    if find_spec("pynetdicom") is None:
        return Check(what, "FAILED", NEEDS_EXTRA)
    family = socket.AF_INET6 if ":" in receive.bind else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((receive.bind, receive.port))
            return Check(what, "ok", f"free on {receive.bind}")
        except OSError as error:
            why = error.strerror or str(error)
    from trrg_sdk.site.send import echo

    anywhere = ipaddress.ip_address(receive.bind).is_unspecified
    host = ("::1" if family == socket.AF_INET6 else "127.0.0.1") if anywhere else receive.bind
    if not (problem := echo(NodeConfig("self", receive.aet, host, receive.port), receive.aet, site.limits)):
        return Check(what, "ok", f"{receive.aet} is listening there already")
    return Check(what, "FAILED", f"{receive.bind}: {why}; and who has it is not {receive.aet}: {problem}")


def _exposure(receive: ReceiveConfig) -> Check:
    if ipaddress.ip_address(receive.bind).is_loopback:
        return Check("who may send", "ok", "this machine only")
    if not receive.peers:
        return Check("who may send", "warning", "anyone in the network: name receive.peers")
    callers = ", ".join(receive.calling_aets) or "any AE title"
    return Check("who may send", "ok", f"{', '.join(receive.peers)} as {callers}")


def _queue(site: SiteConfig) -> Check:
    from trrg_sdk.site.send_queue import SendQueue

    folder = _folder("queue", site.queue_file.parent, 0)
    if folder.verdict == "FAILED" or not site.queue_file.exists():
        return folder
    try:
        counts = SendQueue(site.queue_file, site.queue).counts()
    except TrrgError as error:
        return Check("queue", "FAILED", str(error))
    listed = ", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "empty"
    bad = counts.get("failed") or counts.get("uncommitted")
    return Check("queue", "warning" if bad else "ok", f"{listed}{'; trrg send --site lists them' if bad else ''}")


def _node(site: SiteConfig, node: NodeConfig) -> Check:
    what = f"node {node.name}"
    if find_spec("pynetdicom") is None:
        return Check(what, "FAILED", NEEDS_EXTRA)
    from trrg_sdk.site.send import echo

    problem = echo(node, site.calling_aet, site.limits)
    return Check(what, "FAILED" if problem else "ok", problem or f"{node.aet} at {node.host} answers to C-ECHO")
