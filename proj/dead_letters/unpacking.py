"""Decompresses the bodies of messages with a size limit.

Kombu's own functions have no limit, and a few kilobytes can become gigabytes.
"""

import bz2
import importlib
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Final

#: Largest decompressed body, in bytes; people do not read more.
LIMIT: Final = 2**20

#: Largest LZMA dictionary, in bytes. The highest level needs 64 MiB; a header could ask for any size.
_LZMA_MEMORY: Final = 2**27


class NotUnpacked(Exception):
    """Raised when a body cannot be decompressed, or would be too large; the text says which."""


def unpack(body: bytes, compression: object) -> bytes:
    """Decompress a body that kombu compressed with the named method. Raises `NotUnpacked`."""
    unpacker = _UNPACKERS.get(compression) if isinstance(compression, str) else None
    if unpacker is None:
        raise NotUnpacked(f"compressed with an unknown method, {compression!r}")
    try:
        unpacked = unpacker(body)
    except ImportError:
        raise NotUnpacked(f"compressed with {compression}, whose library is not installed") from None
    except Exception as error:  # each library has its own
        raise NotUnpacked(f"marked as compressed with {compression}, but is not: {error}") from None
    if len(unpacked) > LIMIT:
        raise NotUnpacked(f"compressed with {compression}, over {LIMIT >> 20} MiB when decompressed")
    return unpacked


def _zlib(body: bytes) -> bytes:
    return zlib.decompressobj().decompress(body, LIMIT + 1)


def _bz2(body: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(body, LIMIT + 1)


def _lzma(body: bytes) -> bytes:
    return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY).decompress(body, LIMIT + 1)


def _zstd(body: bytes) -> bytes:
    return bytes(_first("compression.zstd", "backports.zstd").ZstdDecompressor().decompress(body, LIMIT + 1))


def _brotli(body: bytes) -> bytes:
    # Versions before 1.2 lack the limit, and raise `TypeError`.
    return bytes(_first("brotli", "brotlicffi").Decompressor().process(body, output_buffer_limit=LIMIT + 1))


def _first(*modules: str) -> Any:
    """Import the first module that is installed. Raises `ImportError` when none is."""
    *others, last = modules
    for name in others:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return importlib.import_module(last)


#: By kombu's names: the content types that it writes, and the short names that it also reads.
_UNPACKERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    name: unpacker
    for unpacker, names in (
        (_zlib, ("application/x-gzip", "gzip", "zlib")),
        (_bz2, ("application/x-bz2", "bzip2", "bzip")),
        (_lzma, ("application/x-lzma", "lzma", "xz")),
        (_zstd, ("application/zstd", "zstd", "zstandard")),
        (_brotli, ("application/x-brotli", "brotli")),
    )
    for name in names
}
