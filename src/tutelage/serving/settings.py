"""What a server allows and how it batches; every limit has one number here."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tutelage.errors import InputError
from tutelage.programs.image_io import ImageLimits
from tutelage.programs.sandbox_process import Limits


@dataclass(frozen=True)
class ServerSettings:
    """The settings of one server. All limits are above 0.

    Args:
        batching: module calls of all requests under way are answered together (of two at a time where a batch takes under
            5 ms); False: one request after the other.
        max_wait_ms: a batch that is not full waits at most so long for requests, and at most an eighth of the time that
            batches take, where there lately were more requests than there are.
        max_batch: calls a batch, at most; a module's own limit holds besides.
        queue: programs that are held, waiting or running; beyond it a request is refused with 429.
        memory_mib: of bodies and decoded pictures held; beyond it too.
        timeout_s: from the first byte of a request to its answer, else 504.
        grace_s: on SIGTERM, so long for what was accepted.
        body_mib: of one request. body_kib_s: a body comes at least so fast, counted from 2 s after its beginning, else 408: what
            comes more slowly would hold a place that others wait for.
        image_mib, image_pixels: of one picture, as its file and as its header says.
        longest_side: larger pictures are reduced to it, and that is said; 0: they are taken as they are.
        batch_items: programs in one request to ``batch``.
        program_seconds, program_calls: of one program's own processor time, and of its calls to modules.
    """

    batching: bool = True
    max_wait_ms: float = 5.0
    max_batch: int = 64
    queue: int = 256
    memory_mib: int = 1024
    timeout_s: float = 60.0
    grace_s: float = 30.0
    body_mib: float = 32.0
    body_kib_s: float = 32.0
    image_mib: float = 16.0
    image_pixels: int = 25_000_000
    longest_side: int = 2048
    batch_items: int = 64
    program_seconds: float = 1.0
    program_calls: int = 200

    def __post_init__(self) -> None:
        for item in fields(self):
            least = 0 if item.name in ("max_wait_ms", "longest_side") else 1e-3
            if not getattr(self, item.name) >= least and item.name != "batching":
                raise InputError(f"{getattr(self, item.name)} is too small", where=item.name, remedy=f"give at least {least:g}")

    @property
    def images(self) -> ImageLimits:
        """The limits of one picture."""
        return ImageLimits(int(self.image_mib * 2**20), self.image_pixels, self.longest_side or None)

    @property
    def programs(self) -> Limits:
        """The limits of one program."""
        return Limits(seconds=self.program_seconds, calls=self.program_calls)

    @property
    def body_bytes(self) -> int:
        """Of one request."""
        return int(self.body_mib * 2**20)


DEFAULT = ServerSettings()
