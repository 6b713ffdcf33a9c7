"""Compression of large payloads on their way to a server.

A payload of more than 2 KB that shrinks below nine tenths of its size is stored as `Z` and a Zstandard frame, which
states its original size. The first byte tells the two forms apart, so processes with and without compression can share
a server. Copies in memory are never compressed: that would save bytes, but cost time at every hit.
"""

import threading
from types import ModuleType
from typing import Final

from backburner.errors import CodecError, ConfigError

__all__ = ["Compression"]

THRESHOLD: Final = 2048
"""Bytes. Below, compressing costs more time than the network would."""
WORTHWHILE: Final = 0.9
LEVEL: Final = 1
_COMPRESSED: Final = b"Z"


class Compression:
    """Whether and how payloads are compressed.

    Args:
        wanted: ``"zstd"``; ``None``; or ``"auto"``: zstd if the package zstandard is installed. With that package,
            payloads that other processes have compressed can be read in any case.
        max_bytes: no payload is decompressed beyond this size.

    Raises:
        ConfigError: there is no such compression, or its package is not installed.
    """

    def __init__(self, wanted: str | None, max_bytes: int) -> None:
        if wanted not in ("auto", "zstd", None):
            raise ConfigError(f"CACHE_COMPRESSION={wanted!r}: it must be 'auto', 'zstd' or None ('none' in a variable)")
        zstandard = _zstandard()
        if wanted == "zstd" and zstandard is None:
            raise ConfigError('CACHE_COMPRESSION=zstd needs the package zstandard: pip install "backburner[zstd]"')
        self._zstd = None if zstandard is None else _Zstandard(zstandard)
        self._compresses = wanted is not None and zstandard is not None
        self._max_bytes = max_bytes

    def pack(self, payload: bytes) -> bytes:
        """A payload in the form to be stored: compressed, or unchanged."""
        if len(payload) <= THRESHOLD or self._zstd is None or not self._compresses:
            return payload
        frame = self._zstd.compressor.compress(payload)
        return _COMPRESSED + frame if len(frame) < WORTHWHILE * len(payload) else payload

    def unpack(self, stored: bytes) -> bytes:
        """The original payload.

        Raises:
            CodecError: it is compressed, and damaged, too large, or zstandard is not installed.
        """
        if stored[:1] != _COMPRESSED:
            return stored
        if self._zstd is None:
            raise CodecError('it is compressed by zstd, which is not installed here: pip install "backburner[zstd]"')
        frame = stored[1:]
        try:
            # Checked first: zstandard allocates the size that the frame claims before it decompresses anything.
            size = self._zstd.module.frame_content_size(frame)
            if not 0 <= size <= self._max_bytes:
                raise CodecError(
                    f"it is compressed and says to have {size} bytes; max_value_bytes is {self._max_bytes}"
                )
            return bytes(self._zstd.decompressor.decompress(frame, allow_extra_data=False))
        except self._zstd.module.ZstdError as error:
            raise CodecError(f"it is compressed and damaged: {error}") from error


class _Zstandard(threading.local):
    """What zstandard needs in each thread, since none of its objects may be used by two at a time."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.compressor = module.ZstdCompressor(level=LEVEL)
        self.decompressor = module.ZstdDecompressor()


def _zstandard() -> ModuleType | None:
    try:
        import zstandard  # optional
    except ImportError:
        return None
    return zstandard
