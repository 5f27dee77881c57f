"""What systems do not have in common: names that Windows or macOS lack are used here alone, and asked for first."""

import contextlib
import os
import signal
import subprocess
import sys

KILLED = -int(getattr(signal, "SIGKILL", 9))
"""The status of a process that was killed, where the system says so."""


def user_number() -> int | None:
    """Return the number of the user whose rights this process has; None where users have none (Windows)."""
    return os.geteuid() if hasattr(os, "geteuid") else None


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_group(process: "subprocess.Popen[str]") -> None:
    """Kill a process that was started in a session of its own, and those that it started where the system can."""
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def end_by_kill() -> None:
    """End this process as if the system had killed it, where processes can be."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def open_to_read(path: "str | os.PathLike[str]") -> int:
    """Return a handle of a file; a pipe without a writer does not hold us up."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))


def set_mode(handle: int, mode: int) -> None:
    """Set the permissions of an open file, where files have them."""
    if hasattr(os, "fchmod"):
        os.fchmod(handle, mode)


def sync(path: "str | os.PathLike[str]") -> None:
    """Wait until a file, or a folder's list of names, is on the disk. Windows opens no folder."""
    if sys.platform == "win32" or not hasattr(os, "fchmod"):
        if os.path.isdir(path):
            return
        handle = os.open(path, os.O_RDWR)  # it flushes only what was opened to write
    else:
        handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def most_memory_bytes() -> int | None:
    """Return the most memory that this process has held, by the system's own count; None where there is none."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, Linux kilobytes
