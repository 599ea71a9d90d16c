"""Build the lab's guest from what a Debian mirror holds: `python -m novacron.lab.guest.build [--out DIR]`.

Needs apt, dpkg-deb and a C compiler, but no privilege. The second time it only looks at the cache.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from novacron.lab.failure import LabFailed
from novacron.lab.guest import archive, modules

KERNEL_PACKAGE = "linux-image-cloud-amd64"
CMDLINE = "console=ttyS0 quiet panic=-1"
_SOURCE = Path(__file__).with_name("init.c")
_INGREDIENTS = ("init.c", "build.py", "archive.py", "modules.py")
_REAL_PACKAGE = re.compile(r"^\s*Depends: (linux-image-[0-9][a-z0-9.+-]*)$", re.MULTILINE)
_TIMEOUT_S = 600

Say = Callable[[str], None]


class GuestFiles(NamedTuple):
    """What a machine boots from: a bzImage, an initial RAM disk and the kernel's command line."""

    kernel: Path
    initrd: Path
    cmdline: str


def build(cache_dir: Path | None = None, say: Say = lambda _: None) -> GuestFiles:
    """The guest's files, built or found in `cache_dir` (None: the project's own cache).

    :raise LabFailed: a tool is missing, the mirror does not answer, or the compiler refuses.
    """
    places = [cache_dir] if cache_dir else cache_dirs()
    name = f"guest-{_fingerprint()}"
    for place in places:
        if (place / name / "initrd").is_file():
            return _files(place / name)
    cache = next((place for place in places if _writable(place)), None)
    if cache is None:
        raise LabFailed.because("no cache directory can be written", "set XDG_CACHE_HOME to a directory of yours")
    with _fresh(cache / name) as directory:
        kernel = _kernel(cache, say)
        say("compiling the guest's init")
        shutil.copyfile(next((kernel / "boot").glob("vmlinuz-*")), directory / "kernel")
        (directory / "initrd").write_bytes(_initrd(_compile(directory), kernel))
    return _files(cache / name)


def cache_dirs() -> list[Path]:
    """Where built guests are looked for: the project's .build, then the user's cache directory."""
    project = _SOURCE.parents[4]
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "novacron"
    return [project / ".build", own] if (project / "pyproject.toml").is_file() else [own]


def _files(directory: Path) -> GuestFiles:
    return GuestFiles(directory / "kernel", directory / "initrd", CMDLINE)


def _fingerprint() -> str:
    """Changes whenever the guest would be another one."""
    ingredients = [_SOURCE.with_name(name).read_bytes() for name in _INGREDIENTS]
    return hashlib.sha256(b"\0".join(ingredients)).hexdigest()[:12]


def _kernel(cache: Path, say: Say) -> Path:
    """The unpacked kernel package: fetched when the cache holds none."""
    for found in cache.glob("linux-image-*"):
        return found
    package = _real_package(cache, say)
    say(f"fetching {package}")
    with _fresh(cache / package) as directory, tempfile.TemporaryDirectory(dir=cache) as downloads:
        _run(["apt-get", *_apt_options(cache), "download", package], cwd=Path(downloads))
        _run(["dpkg-deb", "-x", str(next(Path(downloads).glob("*.deb"))), str(directory)])
    return cache / package


def _real_package(cache: Path, say: Say) -> str:
    """The package the meta package stands for; asks the mirror for its lists when this machine holds none."""
    for refresh in (False, True):
        if refresh:
            say("fetching package lists")
            (cache / "apt" / "lists" / "partial").mkdir(parents=True, exist_ok=True)
            _run(["apt-get", *_apt_options(cache), "update", "--quiet"])
        depends = _run(["apt-cache", *_apt_options(cache), "depends", KERNEL_PACKAGE], may_fail=True)
        if match := _REAL_PACKAGE.search(depends):
            return match[1]
    raise LabFailed.because(
        f"apt knows no package {KERNEL_PACKAGE}", "use a Debian amd64 machine with a mirror in its apt sources"
    )


def _apt_options(cache: Path) -> list[str]:
    """Once this cache holds package lists of its own they are used: refreshing the system's would need root."""
    if not (cache / "apt").is_dir():
        return []
    return ["-o", f"Dir::State::lists={cache}/apt/lists", "-o", f"Dir::Cache={cache}/apt/cache"]


def _compile(directory: Path) -> bytes:
    program = directory / "init"
    _run(["cc", "-Os", "-static", "-s", "-Wall", "-Wextra", "-pthread", "-o", str(program), str(_SOURCE)])
    contents = program.read_bytes()
    program.unlink()
    return contents


def _initrd(init: bytes, kernel: Path) -> bytes:
    """Not compressed: it is small, and under emulation unpacking costs more than loading."""
    loaded = modules.load_order(next((kernel / "lib" / "modules").iterdir()))
    order = "".join(f"{name}\n" for name, _ in loaded)
    return archive.pack(
        [
            *(archive.directory(name) for name in ("dev", "proc", "sys", "modules")),
            archive.character_device("dev/console", 5, 1),
            archive.file("init", init, executable=True),
            archive.file("modules/order", order.encode()),
            *(archive.file(f"modules/{name}", contents) for name, contents in loaded),
        ]
    )


def _run(command: list[str], cwd: Path | None = None, *, may_fail: bool = False) -> str:
    """Standard output of a tool of this machine; every argument is ours."""
    try:
        done = subprocess.run(  # noqa: S603 - a list, no shell
            command, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError as missing:
        raise LabFailed.because(f"{command[0]} is not installed", "run make setup") from missing
    except subprocess.TimeoutExpired as late:
        raise LabFailed.because(f"{command[0]} did not end in {_TIMEOUT_S} s", "look at the network") from late
    if done.returncode and not may_fail:
        raise LabFailed.because(f"{' '.join(command[:2])} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


@contextlib.contextmanager
def _fresh(final: Path) -> Iterator[Path]:
    """A directory that appears under its name only once it is complete; nothing is left of a failed one."""
    final.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".", dir=final.parent))
    try:
        yield building
        building.chmod(0o755)
        try:
            building.rename(final)
        except OSError:
            if not final.is_dir():  # else somebody else was quicker: theirs is as good
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _writable(directory: Path) -> bool:
    while not directory.exists():
        directory = directory.parent
    return os.access(directory, os.W_OK)


def main() -> None:
    """Build it, say where it lies; with --out also copy it there."""
    parser = argparse.ArgumentParser(prog="python -m novacron.lab.guest.build", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="copy kernel and initrd there")
    out: Path | None = parser.parse_args().out
    files = build(say=print)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        files = GuestFiles(Path(shutil.copy(files.kernel, out)), Path(shutil.copy(files.initrd, out)), files.cmdline)
    print(f"kernel   {files.kernel}\ninitrd   {files.initrd}\ncmdline  {files.cmdline}")


if __name__ == "__main__":
    main()
