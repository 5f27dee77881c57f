"""The cache of compiled kernels: ours alone, checked before it is loaded, made anew where it is damaged."""

import os
import stat
import subprocess
import sys

import pytest

from nonlin.files import private_folder
from nonlin.kernels.cpu import build

SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    if build.compiler() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("NONLIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nonlin"


def made(name="x"):
    return build.compile_shared(SOURCE, name, ("-shared", "-fPIC"), [])


def answer(path):
    """What the library answers, in a process of its own: a damaged one may end it."""
    code = f"import ctypes; print(ctypes.CDLL({str(path)!r}).answer())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_the_folder_and_its_files_are_ours_alone_whatever_the_umask(cache, umask):
    old = os.umask(umask)
    try:
        path = made()
    finally:
        os.umask(old)
    assert stat.S_IMODE(cache.stat().st_mode) == stat.S_IMODE(path.stat().st_mode) == 0o700
    assert made() == path and answer(path) == "42"


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "open to others", "a link", "a folder's name"])
def test_what_is_damaged_or_not_ours_is_made_anew_and_never_loaded(cache, tmp_path, damage):
    path = made()
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "changed":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "open to others":
        path.chmod(0o777)
    elif damage == "a link":
        os.rename(path, tmp_path / "elsewhere.so")
        path.symlink_to(tmp_path / "elsewhere.so")
    else:
        path.rename(path.with_name(path.name[:30] + "0" * 40 + ".so"))
    again = made()
    assert build._digest(again) in again.name and answer(again) == "42"
    assert not again.is_symlink() and stat.S_IMODE(again.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_folder_and_files_are_not_used(cache, tmp_path):
    cache.parent.mkdir()
    cache.mkdir(mode=0o777)
    os.chown(cache, 65534, 65534)
    path = made()
    assert path.parent == cache.with_name(f"nonlin-{os.geteuid()}") and answer(path) == "42"
    os.chown(path, 65534, 65534)  # planted before the folder was closed
    assert made() == path and path.stat().st_uid == 0
    os.chown(path.parent, 65534, 65534)
    with pytest.raises(PermissionError, match="another user"):
        private_folder(cache)


@pytest.mark.parametrize("name", ["../../evil", "a/b", "..", "ünï*[?]", "x" * 500])
def test_a_name_leads_to_no_other_folder(cache, name):
    assert made(name).parent == cache and answer(made(name)) == "42"


def test_a_compiler_that_never_ends_is_ended_with_what_it_started(cache, tmp_path, monkeypatch):
    slow = tmp_path / "g++"
    slow.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo slow\n'
                    f"sleep 600 & echo $! > {tmp_path}/child\nwait\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.setattr(build, "SECONDS", 3.0)
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        made()
    assert build.reason(caught.value) == "the compiler took more than 3 seconds"
    child = int((tmp_path / "child").read_text())
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(child)], capture_output=True, text=True).stdout.strip()
    assert not state or state[0] == "Z"
