import ctypes
import os
import platform
import subprocess
import sys

import pytest

from diffplan.training import allocation
from diffplan.training.allocation import keep_freed_memory

SCRIPT = """
import resource, sys, torch
from diffplan.training.allocation import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()

def pass_through():
    x = torch.ones(2**18)
    kept = [x := x * 2 for _ in range(20)]

for _ in range(3):
    pass_through()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    pass_through()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 20)
"""


def count_page_faults(way):
    """Page faults of each pass that makes and frees 20 tensors of a megabyte, in a process of its own.

    By itself glibc learns from what is freed; here it is told to map each piece, which it then does every time.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, way], env=environment, capture_output=True, text=True, check=True
    )
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_kept_between_steps():
    assert count_page_faults("kept") < 200
    assert count_page_faults("freed") > 1000


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: object())  # one without `mallopt`
    assert not keep_freed_memory()
    monkeypatch.undo()
    assert ctypes.CDLL is allocation.ctypes.CDLL
