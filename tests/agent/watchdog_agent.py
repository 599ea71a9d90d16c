"""What an agent does with its watchdog, and with one guarded machine that does not die: told on stdin, a line a wish.

python -m tests.agent.watchdog_agent DEVICE RUN_DIR
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from novacron.agent import keeper
from novacron.agent.watchdog import Watchdog

MACHINE = "import signal; signal.pause()"


def now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def main() -> None:
    device, run_dir = map(Path, sys.argv[1:])
    watchdog, machine = Watchdog(device, run_dir), None
    while line := await asyncio.to_thread(sys.stdin.readline):
        what, _, value = line.strip().partition(" ")
        answer: object = True
        if what == "ready":
            answer = await watchdog.ready(int(value), now_s() + 600.0)
            answer = answer or watchdog.said
        elif what == "arm":
            answer = await watchdog.arm(now_s() + float(value))
        elif what == "at_most":
            answer = await watchdog.arm(now_s() + float(value), at_most=True)
        elif what == "start":
            lock = keeper.hold(run_dir / keeper.LOCK)
            machine = subprocess.Popen([sys.executable, "-c", MACHINE], pass_fds=[lock])
            os.close(lock)
        elif what == "kill" and machine is not None:
            machine.kill()
            answer = machine.wait()
        elif what == "end":
            await watchdog.end()
        sys.stdout.write(f"= {answer}\n")  # beside what is logged
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
