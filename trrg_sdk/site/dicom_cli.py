"""``trrg receive``, ``trrg send`` and ``trrg doctor --site``: what talks DICOM over the network."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
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
        "--site", metavar="TOML", help="take everything from a site's configuration, and send as it says"
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


def of_site(args: argparse.Namespace, defaults: Mapping[str, object]) -> tuple[argparse.Namespace, Filed | None]:
    """What ``trrg watch --site`` says, in the options of ``trrg watch``.

    Args:
        args: With ``site``.
        defaults: Option → value when it was not given: a mixture of both is refused.

    Returns:
        The options, and what queues the DICOM outputs of a study for the site's nodes.

    Raises:
        UsageError: The configuration has problems, or other options were given.
    """
    from trrg_sdk.site.config import read_site

    if given := [name for name, value in defaults.items() if vars(args)[name] != value]:
        raise UsageError(f"--site takes everything from the configuration, write there: {', '.join(given)}")
    site = read_site(Path(args.site))
    if site.watched is None:
        raise UsageError(f"{args.site} names no folder to watch: give it watch.folder, or a table [receive]")
    if site.watch.folder is None:
        site.watched.mkdir(mode=0o700, parents=True, exist_ok=True)  # the receiver may not have started yet
    said = {
        "folder": str(site.watched),
        "out": str(site.outputs.folder),
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
    return argparse.Namespace(**vars(args) | said), _filed(site)


def _filed(site: SiteConfig) -> Filed | None:
    """What queues a study's DICOM outputs for the nodes that get them."""
    from trrg_sdk.site.send_queue import SendQueue

    if not site.outputs.send_to:
        return None
    queue = SendQueue(site.queue_file, site.queue)

    def filed(paths: Sequence[Path]) -> None:
        for path in paths:
            for destination in site.outputs.send_to if path.suffix == ".dcm" else ():
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
    """What the options say, or what the site's configuration says; not a mixture of both."""
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
    if args.site is None:
        if "spool" not in options:
            raise UsageError("name the spool with --spool DIR, or a configuration with --site TOML")
        config = from_table(ReceiveConfig, options, base=Path.cwd(), label="the command line")
        return config, LimitsConfig(), None
    if options:
        raise UsageError("--site takes everything from the configuration: write the other options there")
    site = read_site(Path(args.site))
    if site.receive is None:
        raise UsageError(f"{args.site} has no table [receive], so there is nothing to receive into")
    return site.receive, site.limits, site
