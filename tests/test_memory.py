"""What is asked of the system's memory; what a step of training saves by it is for the benchmark of speed."""

import subprocess
import sys
from pathlib import Path

import pytest

from vae_anomaly import memory

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Whether the pages of a tensor that comes after the call are of those that may be huge.
SCRIPT = """
import re, torch
from pathlib import Path
from vae_anomaly.memory import use_huge_pages

def flags(address):
    area = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        bounds = re.match("([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds:
            area = [int(bound, 16) for bound in bounds.groups()]
        elif line.startswith("VmFlags:") and area[0] <= address < area[1]:
            return line.split()

use_huge_pages()
use_huge_pages()
found = [torch.empty(2**20) for _ in range(8)]
print(*["hg" in flags(value.data_ptr() + 2**21) for value in found])
"""


@pytest.mark.skipif(not SETTING.exists(), reason="this system has no huge pages to ask for")
def test_memory_for_training_may_come_in_huge_pages():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == 8 * ["True"], done.stderr


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_no_other_system_is_asked(platform, monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", platform)
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    memory.use_huge_pages()
