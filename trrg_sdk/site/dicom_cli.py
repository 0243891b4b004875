"""``trrg receive``, ``trrg send`` and ``trrg doctor --site``: what talks DICOM over the network."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trrg_sdk.errors import UsageError

Filed = Callable[[Sequence[Path]], None]

if TYPE_CHECKING:
    from trrg_sdk.site.config import LimitsConfig, ReceiveConfig, SiteConfig
    from trrg_sdk.site.courier import Courier


def declare_receive(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``trrg receive``; nothing heavy is imported."""
    parser.add_argument(
        "--site",
        metavar="TOML",
        help="a site's configuration says what other options do not, and what is queued is sent",
    )
    parser.add_argument("--spool", metavar="DIR", help="studies arrive here; complete ones stand in DIR/ready")
    parser.add_argument("--port", type=int, metavar="P", help="TCP port (default: 11112)")
    parser.add_argument("--aet", metavar="NAME", help="our AE title (default: TRRG); calls to another are rejected")
    parser.add_argument(
        "--bind", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument(
        "--calling", action="append", metavar="AET", help="an AE title that may call (repeatable; default: any)"
    )
    parser.add_argument(
        "--peer",
        action="append",
        metavar="NET",
        help="an address or network that may connect (repeatable; default: any)",
    )
    parser.add_argument(
        "--study-timeout", type=float, metavar="S", help="a study is complete after so many quiet seconds (default: 30)"
    )


def receive(args: argparse.Namespace) -> int:
    """Receive until SIGTERM or SIGINT."""
    need_pynetdicom()
    from trrg_sdk.site.receive import Receiver

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config, limits, site = _receive_config(args)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    courier = _courier(site) if site and site.nodes else None
    receiver = Receiver(config, limits, committed=courier.reported if courier else None)
    receiver.start()
    sender = threading.Thread(target=courier.run, args=(stop,), name="courier") if courier else None
    if sender:
        sender.start()
    receiver.run(stop)
    if sender:
        sender.join()
    return 0


def declare_send(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``trrg send``."""
    parser.add_argument("file", nargs="*", metavar="FILE", help="DICOM files to queue; none sends what is due")
    parser.add_argument("--site", required=True, metavar="TOML", help="the site's configuration, which names the nodes")
    parser.add_argument("--to", metavar="NODE", help="send the files to this node (default: those of outputs.send_to)")
    parser.add_argument("--retry", action="store_true", help="try what has failed once more")


def send(args: argparse.Namespace) -> int:
    """Queue files, send what is due, and say what became of everything; 3 when something has failed."""
    need_pynetdicom()
    from trrg_sdk.site.config import read_site

    site = read_site(Path(args.site))
    destinations = [args.to] if args.to else list(site.outputs.send_to)
    if args.to and args.to not in {node.name for node in site.nodes}:
        raise UsageError(f"--to {args.to}: the configuration has no such node")
    if args.file and not destinations:
        raise UsageError("where to? Name a node with --to, or in outputs.send_to of the configuration")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    courier = _courier(site)
    for name in args.file:
        for destination in destinations:
            courier.queue.enqueue(Path(name), destination)
    if args.retry:
        courier.queue.retry_failed()
    courier.round()
    for item in courier.queue.items():
        sys.stdout.write(f"{item.instance}  {item.destination:<12} {item.state:<12} {item.note}\n")
    return 3 if courier.queue.counts().get("failed") else 0


def doctor(args: argparse.Namespace) -> int:
    """Try everything that a site's configuration names; 1 when something fails."""
    from trrg_sdk.site.checks import check_site
    from trrg_sdk.site.config import read_site

    failed = False
    for check in check_site(read_site(Path(args.site))):
        sys.stdout.write(f"{check.verdict:<8} {check.what:<16} {check.reason}\n")
        sys.stdout.flush()
        failed = failed or check.verdict == "FAILED"
    return int(failed)


def options_of(site: SiteConfig) -> dict[str, object]:
    """What a site's configuration says, in the options of ``trrg batch`` and ``trrg watch``."""
    return {
        "folder": site.watched,
        "out": site.outputs.folder,
        "bundle": site.model.bundle,
        "device": site.model.device,
        "threads": site.model.threads,
        "workers": site.watch.workers,
        "format": ",".join(site.outputs.formats),
        "settle": site.watch.settle_s,
        "rescan": site.watch.rescan_s,
        "deidentify": site.outputs.deidentify_key,
        "accept": list(site.watch.accept),
    }


def queueing(site: SiteConfig | None) -> Filed | None:
    """What queues a study's DICOM outputs for the nodes that get them; None where there are none."""
    from trrg_sdk.site.send_queue import SendQueue

    if site is None or not site.outputs.send_to:
        return None
    queue, destinations = SendQueue(site.queue_file, site.queue), site.outputs.send_to

    def filed(paths: Sequence[Path]) -> None:
        for path in paths:
            for destination in destinations if path.suffix == ".dcm" else ():
                queue.enqueue(path, destination)

    return filed


def _courier(site: SiteConfig) -> Courier:
    from trrg_sdk.site.courier import Courier
    from trrg_sdk.site.send_queue import SendQueue

    return Courier(site, SendQueue(site.queue_file, site.queue))


def need_pynetdicom() -> None:
    """Say what to install when DICOM networking is not there.

    Raises:
        UsageError: It is not.
    """
    try:
        import pynetdicom  # noqa: F401
    except ImportError as error:
        raise UsageError("DICOM networking needs an extra: pip install 'trrg-sdk[site]'") from error


def _receive_config(args: argparse.Namespace) -> tuple[ReceiveConfig, LimitsConfig, SiteConfig | None]:
    """What the options say; where they say nothing, what the site's configuration says."""
    from trrg_sdk.site.config import LimitsConfig, ReceiveConfig, read_site
    from trrg_sdk.site.strict_toml import from_table

    given = {
        "spool": args.spool,
        "port": args.port,
        "aet": args.aet,
        "bind": args.bind,
        "calling_aets": args.calling,
        "peers": args.peer,
        "study_timeout_s": args.study_timeout,
    }
    options = {key: value for key, value in given.items() if value is not None}
    site = read_site(Path(args.site)) if args.site else None
    if site and site.receive:
        if not options:
            return site.receive, site.limits, site
        options = _table(site.receive) | options
    if "spool" not in options:
        what = f"{args.site} has no table [receive]" if site else "nothing says where studies arrive"
        raise UsageError(f"{what}: name the spool with --spool DIR, or there in a configuration for --site TOML")
    config = from_table(ReceiveConfig, options, base=Path.cwd(), label="the command line")
    return config, site.limits if site else LimitsConfig(), replace(site, receive=config) if site else None


def _table(receive: ReceiveConfig) -> dict[str, object]:
    """The table that says the same; relative paths were resolved when it was read."""
    values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(receive).items()}
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if value is not None
    }
