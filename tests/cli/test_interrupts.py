"""Ctrl-C, again and again: the program ends with 130, and its workers with it."""

import os
import signal
import subprocess
import sys
import time

import pytest

STUCK = ("import time\nfrom nonlin import cli\n"
         "def stuck(*a, **k):\n    print('ready', flush=True)\n    while True:\n        try:\n"
         "            time.sleep(60)\n        except KeyboardInterrupt:\n            pass\n"
         "cli.program.main = stuck\ncli.main(['show'])\n")
PATIENT = STUCK.replace("            pass\n", "            raise\n")


@pytest.mark.parametrize(("code", "times"), [(STUCK, 3), (PATIENT, 1), (PATIENT, 3)])
def test_quick_interrupts_end_with_130(code, times):
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert process.stdout and process.stdout.readline() == "ready\n"
    for _ in range(times):
        if process.poll() is None:
            os.kill(process.pid, signal.SIGINT)
        time.sleep(0.05)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
