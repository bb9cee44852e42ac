"""What a user may choose about the service."""

from __future__ import annotations

from dataclasses import dataclass, field

from pelagia.errors import OptionError

__all__ = ["ServeOptions"]


@dataclass(frozen=True)
class ServeOptions:
    """Where the service listens and what it takes in.

    Raises:
        OptionError: a value cannot be used.
    """

    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on; by default only programs on this machine reach it."}
    )
    port: int = field(default=8000, metadata={"help": "Port to listen on; 0 for a free one."})
    allow_host: tuple[str, ...] = field(
        default=(), metadata={"help": "A name by which browsers may call the service, such as that of a proxy before it."}
    )
    max_bytes: int = field(default=64 << 20, metadata={"help": "Refuse a larger image file."})
    # So many pixels of RGB are 300 MB.
    max_pixels: int = field(
        default=100_000_000,
        metadata={
            "help": "Refuse to hold more pixels at once: of an image, a map or a picture. A TIFF in tiles or strips, which is "
            "read in windows, may have ten times as many."
        },
    )
    most_images: int = field(
        default=8, metadata={"help": "Images taken in at once: being received, waiting, or in work. One more is told to wait."}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise OptionError(f"port must lie in 0 to 65535, got {self.port}")
        for name in ("max_bytes", "max_pixels", "most_images"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
