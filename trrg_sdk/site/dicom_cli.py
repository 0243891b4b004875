"""``trrg receive``: the part of the command line that talks DICOM over the network."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from trrg_sdk.errors import UsageError

if TYPE_CHECKING:
    from trrg_sdk.site.config import LimitsConfig, ReceiveConfig, SiteConfig


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
    receiver = Receiver(config, limits)
    receiver.start()
    receiver.run(stop)
    return 0


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
