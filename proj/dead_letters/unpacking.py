"""Compressed bodies of messages, as kombu packs them, unpacked for people within a limit on size.

Kombu's own functions unpack a body whole: a few kilobytes can be gigabytes then.
"""

import bz2
import importlib
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Final

#: Bytes that a body may have when it is unpacked: more than anybody reads.
LIMIT: Final = 2**20

#: Bytes that LZMA may take for its dictionary: it is 64 MiB at the highest level, and whatever a header says.
_LZMA_MEMORY: Final = 2**27


class NotUnpacked(Exception):
    """The body cannot be unpacked, or is too large then; the text says which."""


def unpack(body: bytes, compression: object) -> bytes:
    """The body as it was before kombu compressed it by the method of this name. Raises `NotUnpacked`."""
    unpacker = _UNPACKERS.get(compression) if isinstance(compression, str) else None
    if unpacker is None:
        raise NotUnpacked(f"compressed by an unknown method, {compression!r}")
    try:
        unpacked = unpacker(body)
    except ImportError:
        raise NotUnpacked(f"compressed as {compression}, and this program lacks the library") from None
    except Exception as error:  # each library has its own
        raise NotUnpacked(f"said to be compressed as {compression}, and is not: {error}") from None
    if len(unpacked) > LIMIT:
        raise NotUnpacked(f"compressed as {compression}, and longer than {LIMIT >> 20} MiB when unpacked")
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
    # Before version 1.2 it has no limit, and raises `TypeError` here.
    return bytes(_first("brotli", "brotlicffi").Decompressor().process(body, output_buffer_limit=LIMIT + 1))


def _first(*modules: str) -> Any:
    """The first of the modules that is installed. Raises `ImportError` when none is."""
    *others, last = modules
    for name in others:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return importlib.import_module(last)


#: By kombu's names: the content types that it writes, and the short ones that it reads.
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
