"""System calls that Python does not wrap: renames that refuse or exchange, and the sync of a filesystem."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2
_KEEP_SIZE = 1
_DARWIN_EXCLUSIVE = 4
_DARWIN_SWAP = 2
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)

_libc = ctypes.CDLL(None, use_errno=True)


def _rename(source: str, target: str, linux_flag: int, darwin_flag: int) -> bool:
    """Rename with a flag; ``False`` where kernel or filesystem lacks it."""
    old, new = os.fsencode(source), os.fsencode(target)
    if sys.platform == "darwin":
        function = getattr(_libc, "renamex_np", None)
        result = -1 if function is None else function(old, new, darwin_flag)
    else:
        function = getattr(_libc, "renameat2", None)
        result = -1 if function is None else function(_AT_FDCWD, old, _AT_FDCWD, new, linux_flag)
    if function is None:
        return False
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), source, None, target)


def rename_no_replace(source: str, target: str) -> None:
    """Move a directory to a name that must be free.

    Raises:
        OSError: ``EEXIST`` or ``ENOTEMPTY`` when the name is taken, or any other reason.
    """
    if _rename(source, target, _NOREPLACE, _DARWIN_EXCLUSIVE):
        return
    # Plain rename replaces an empty directory silently; a filled one it refuses by itself.
    if os.path.lexists(target):
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)
    os.rename(source, target)  # noqa: PTH104


def rename_exchange(first: str, second: str) -> bool:
    """Let two directories trade names at once; ``False`` where that is not supported.

    An overlay answers EXDEV where one of them lies in a lower layer, as in a container whose image brings the
    store along: it cannot move such a directory, and the caller copies it.
    """
    try:
        return _rename(first, second, _EXCHANGE, _DARWIN_SWAP)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise


def allocate(fd: int, offset: int, length: int) -> bool:
    """Have room set aside for a file beyond its end, whose size stays; ``False`` where not supported.

    Raises:
        OSError: there is no such room.
    """
    function = getattr(_libc, "fallocate64", None) or getattr(_libc, "fallocate", None)
    if sys.platform != "linux" or function is None:
        return False
    if function(fd, _KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return False
        raise OSError(code, os.strerror(code))
    return True


def sync_filesystem(fd: int) -> bool:
    """Write everything of the filesystem that `fd` lies on to its device; ``False`` where not supported.

    Raises:
        OSError: the device reports an error; what was written since the last sync may be lost.
    """
    function = getattr(_libc, "syncfs", None)
    if function is None:
        return False
    if function(fd) != 0:
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return False
        raise OSError(code, os.strerror(code))
    return True


def syncs_report_errors() -> bool:
    """Whether `sync_filesystem` can be trusted: before Linux 5.8 it succeeded over a failing device."""
    if sys.platform != "linux":
        return False
    major, _, rest = os.uname().release.partition(".")
    minor = rest.partition(".")[0]
    return major.isdigit() and minor.isdigit() and (int(major), int(minor)) >= (5, 8)
