"""Compiled code on disk: one file for each kernel and signature, which is loaded only if it is undamaged.

Numba's own cache trusts its files: with a damaged one each call fails, or runs damaged machine code. And it numbers
them in an index, which two processes may write at once. Here the signature names the file, which begins with a digest.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import uuid
import warnings
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

from attnarray.kernels.numba.runtime.library import source_digest
from attnarray.kernels.numba.vector.lanes import tile_size

DIGEST = 32  # bytes


def digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


@functools.cache
def sources() -> Any:
    """What compiled code depends on: the contents of all modules of kernels, or the state of a ZIP archive with them.

    Numba itself looks at the module of the kernel alone, and would reuse code that was compiled from older versions of
    the others. Times of change do not count: those of another checkout of the same sources differ.
    """
    archive = next((path for path in Path(__file__).parents if path.is_file()), None)
    return source_digest() if archive is None else (archive.stat().st_mtime_ns, archive.stat().st_size)


class KernelCache(FunctionCache):  # type: ignore[misc]  # of a library without types
    """The cache of one function; RuntimeError if no folder can be written."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code for a signature; None if there is none, or none that can be used."""
        target_context.refresh()
        path, stamp = self._path_and_stamp(sig, target_context.codegen())
        try:
            content = path.read_bytes()
            if content[:DIGEST] != digest(content[DIGEST:]):
                raise ValueError("it is damaged")
            if content[DIGEST : 2 * DIGEST] != stamp:  # of other sources
                return None
            return self._impl.rebuild(target_context, pickle.loads(content[2 * DIGEST :]))
        except FileNotFoundError:
            return None
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) else error
            warnings.warn(f"Compiling anew, since {path} cannot be used: {reason}.", RuntimeWarning, stacklevel=2)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the code for a signature, if that is possible."""
        if not self._impl.check_cachable(data):
            return
        path, stamp = self._path_and_stamp(sig, data.codegen)
        content = stamp + dumps(self._impl.reduce(data))
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}")
        try:
            self._impl.locator.ensure_cache_path()
            temporary.write_bytes(digest(content) + content)
            os.replace(temporary, path)
        except OSError as error:  # one warning, however many kernels there are
            text = f"Compiled kernels cannot be kept in {path.parent}: {error.strerror}. Later processes compile anew."
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def flush(self) -> None:
        """Remove the code for all signatures."""
        for path in Path(self._cache_path).glob(f"{self._impl.filename_base}.*.nbc"):
            path.unlink(missing_ok=True)

    def _path_and_stamp(self, sig: Any, codegen: Any) -> tuple[Path, bytes]:
        """The file for a signature, and the digest of all that its code depends on."""
        key = repr(self._index_key(sig, codegen)).encode()
        versions = repr((numba.__version__, llvmlite.__version__, tile_size(32), sources())).encode()
        name = f"{self._impl.filename_base}.{hashlib.blake2b(key, digest_size=8).hexdigest()}.nbc"
        return Path(self._cache_path, name), digest(versions + key)
