"""One TOML is one site: bundle, outputs, receiver, nodes, limits. Read whole and checked, or refused."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from trrg_sdk.errors import UsageError
from trrg_sdk.gate_codes import accepted
from trrg_sdk.site.strict_toml import Between, Matches, OneOf, read_toml

# PS3.5 6.2, VR AE, and narrower: no blank, so that a log line and a command line hold it without quotes.
AeTitle = Annotated[
    str, Matches(r"[\x21-\x5B\x5D-\x7E]{1,16}", "an AE title: 1 to 16 ASCII characters, no blank, no \\")
]
Port = Annotated[int, Between(1, 65535)]
Seconds = Annotated[float, Between(0.1, 86_400)]
_NodeName = Annotated[str, Matches(r"[a-z0-9_-]{1,32}", "a name of a-z, 0-9, - and _")]


@dataclass(frozen=True)
class ModelConfig:
    """What writes the reports.

    Attributes:
        bundle: Its folder; the embedded one when it is left out.
        device: As ``trrg report --device``.
        threads: Processor threads; the physical cores when it is left out.
    """

    bundle: Path | None = None
    device: Annotated[str, OneOf(("auto", "cpu", "cuda", "openvino", "tensorrt", "tensorrt-rtx"))] = "auto"
    threads: Annotated[int, Between(1, 1024)] | None = None


@dataclass(frozen=True)
class OutputsConfig:
    """Where reports go.

    Attributes:
        folder: Files are written here.
        formats: Names that ``trrg report --format`` takes.
        send_to: Names of nodes that get every DICOM output by C-STORE.
        deidentify_key: A secret file of at least 32 random bytes: the patient is taken out of every output.
    """

    folder: Path
    formats: tuple[str, ...] = ("text", "json")
    send_to: tuple[str, ...] = ()
    deidentify_key: Path | None = None


@dataclass(frozen=True)
class ReceiveConfig:
    """The Storage SCP.

    Attributes:
        spool: Studies arrive here; complete ones stand in its folder ``ready``.
        aet: Our AE title. Whoever calls another one is rejected.
        bind: The address to listen on; only this machine reaches the default.
        port: TCP port.
        calling_aets: AE titles that may call; anyone when empty.
        peers: Addresses or networks ("10.1.2.0/24") that may connect; any when empty.
        study_timeout_s: A study is complete when its associations have ended and so long nothing more came for it.
        stop_timeout_s: On a stop, running associations have so long to end.
        keep_days: Complete studies are deleted so long after their last object came, whether they were reported or
            not; never when it is left out.
    """

    spool: Path
    aet: AeTitle = "TRRG"
    bind: str = "127.0.0.1"
    port: Port = 11112
    calling_aets: tuple[AeTitle, ...] = ()
    peers: tuple[str, ...] = ()
    study_timeout_s: Seconds = 30.0
    stop_timeout_s: Seconds = 30.0
    keep_days: Annotated[float, Between(0.01, 36_500)] | None = None

    def __post_init__(self) -> None:
        """Refuse an address that is none."""
        try:
            ipaddress.ip_address(self.bind)
        except ValueError:
            raise ValueError(f"bind must be an IP address, not {self.bind!r}") from None
        self.networks()

    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The peers as networks.

        Raises:
            ValueError: One is neither an address nor a network.
        """
        try:
            return tuple(ipaddress.ip_network(text) for text in self.peers)
        except ValueError:
            raise ValueError(f"peers must be IP addresses or networks such as 10.1.2.0/24, got {self.peers}") from None


@dataclass(frozen=True)
class LimitsConfig:
    """What a peer may take from this machine.

    Attributes:
        associations: At the same time; one more is rejected for now.
        pdu_bytes: Largest protocol data unit that we offer to receive; a longer one ends the association.
        object_mib: Largest DICOM object; a larger one gets status A700 and is not kept.
        object_timeout_s: A single object must have arrived within this time.
        free_mib: An object is refused with status A700 when its disk would have less free space.
        network_timeout_s: A peer that is silent so long, or takes so long for one PDU, is cut off.
        reply_timeout_s: How long we wait for a peer's answer when we call.
    """

    associations: Annotated[int, Between(1, 200)] = 10
    pdu_bytes: Annotated[int, Between(4096, 1_048_576)] = 131_072
    object_mib: Annotated[int, Between(1, 4095)] = 512
    object_timeout_s: Seconds = 600.0
    free_mib: Annotated[int, Between(0, 1_000_000_000)] = 1024
    network_timeout_s: Seconds = 60.0
    reply_timeout_s: Seconds = 30.0


@dataclass(frozen=True)
class WatchConfig:
    """Reporting on studies: as they arrive, or with ``trrg batch --site``.

    Attributes:
        folder: Searched with its subfolders; ``ready`` of ``receive.spool`` when it is left out.
        workers: Threads that read headers and hash files.
        settle_s: Files that changed less than so many seconds ago are left alone.
        rescan_s: Look this often without any event of the file system too.
        accept: Codes of the gate to override (``trrg_sdk.gate_codes``).
    """

    folder: Path | None = None
    workers: Annotated[int, Between(1, 64)] = 4
    settle_s: Annotated[float, Between(0, 86_400)] = 5.0
    rescan_s: Seconds = 60.0
    accept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a code that does not exist or can never be overridden."""
        try:
            accepted(self.accept)
        except UsageError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class QueueConfig:
    """What waits to be sent.

    Attributes:
        file: An SQLite file; ``queue.sqlite`` beside the outputs when it is left out.
        retry_first_s: Pause after the first failure; each further one is twice as long.
        retry_longest_s: The longest pause.
        give_up_hours: An object that could not be delivered for so long is reported as failed.
        commitment_timeout_s: When no commitment has come after so long, the node is asked once more, then reported.
    """

    file: Path | None = None
    retry_first_s: Seconds = 30.0
    retry_longest_s: Seconds = 3600.0
    give_up_hours: Annotated[float, Between(0, 8760)] = 72.0
    commitment_timeout_s: Seconds = 3600.0


@dataclass(frozen=True)
class NodeConfig:
    """A DICOM node that we call.

    Attributes:
        name: How this file names it.
        aet: Its AE title.
        host: Host name or address.
        port: TCP port.
        commitment: Ask it for storage commitment where it offers that.
    """

    name: _NodeName
    aet: AeTitle
    host: Annotated[str, Matches(r"[A-Za-z0-9._:%-]{1,255}", "a host name or an address")]
    port: Port
    commitment: bool = True


@dataclass(frozen=True)
class SiteConfig:
    """The whole file.

    Attributes:
        outputs: Where reports go.
        receive: The Storage SCP; no receiver when it is left out.
        model: What writes the reports.
        limits: What a peer may take.
        watch: Reporting on what arrives.
        queue: What waits to be sent.
        nodes: Whom we call.
    """

    outputs: OutputsConfig
    receive: ReceiveConfig | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    nodes: tuple[NodeConfig, ...] = ()

    def __post_init__(self) -> None:
        """Refuse two nodes of one name, and a destination that is no node."""
        names = [node.name for node in self.nodes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"nodes: each needs its own name, given twice: {_list(twice)}")
        if strange := sorted(set(self.outputs.send_to) - set(names)):
            raise ValueError(f"outputs.send_to: no such node: {_list(strange)}; there are: {_list(names) or 'none'}")

    @property
    def queue_file(self) -> Path:
        """The queue, whether named or not."""
        return self.queue.file or self.outputs.folder / "queue.sqlite"

    @property
    def watched(self) -> Path | None:
        """The folder to read, whether named or not; None when there is none."""
        return self.watch.folder or (self.receive.spool / "ready" if self.receive else None)

    @property
    def calling_aet(self) -> str:
        """The AE title under which we call others."""
        return self.receive.aet if self.receive else "TRRG"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def read_site(path: Path) -> SiteConfig:
    """Read and check a site's TOML.

    Raises:
        UsageError: It has problems: all of them are listed.
    """
    return read_toml(SiteConfig, path)
