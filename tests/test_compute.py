import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from vla_crl.compute import ComputeConfig
from vla_crl.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "device is 'gpu', expected 'cpu', 'cuda' or 'cuda:1' and the like"),
        ({"sim_device": "cuda"}, "sim_device is 'cuda', expected 'cpu' or 'cuda:0' and the like"),
        ({"num_torch_threads": 0}, "num_torch_threads = 0, expected at least 1 and at most 1024"),
        ({"num_sim_threads": 0}, "num_sim_threads = 0, expected at least 1 and at most 1024"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ComputeConfig(**settings)


MEASURE_MEMORY = """
import ctypes
import torch
from vla_crl.compute import ComputeConfig

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class MallocInfo(ctypes.Structure):  # what glibc's mallinfo2 tells, see its manual page
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]

ComputeConfig().prepare()
library, size = ctypes.CDLL(None), 64 * 2**20  # more than glibc keeps on its own
library.mallinfo2.restype = MallocInfo
before = library.mallinfo2()
tensor = torch.ones(size // 4)
taken = library.mallinfo2()
del tensor
freed = library.mallinfo2()
assert taken.hblkhd == before.hblkhd  # not mapped from the system
assert taken.uordblks >= before.uordblks + size
assert freed.fordblks >= taken.fordblks + size  # there for the next
"""


def test_memory_that_is_freed_is_kept():
    # In a process of its own: one in which an allocation has failed takes from another arena.
    subprocess.run([sys.executable, "-c", MEASURE_MEMORY], check=True)


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")],
)
def test_threads_wait_for_a_short_time_unless_the_environment_says_otherwise(given, spins):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    code = "import vla_crl, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == spins


def test_torch_gets_its_threads():
    before = torch.get_num_threads()
    try:
        ComputeConfig(num_torch_threads=3).prepare()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_torch_without_cuda_is_told_before_the_work(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    message = r"device 'cuda': torch .* \(CPU only\) was built without CUDA; choose 'cpu', or inst"
    with pytest.raises(ConfigError, match=message):
        ComputeConfig(device="cuda").prepare()


def test_a_gpu_that_is_not_there_is_told_before_the_work(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"device 'cuda:1': torch .* \(CUDA 12.8\) finds 1 GPU;"):
        ComputeConfig(device="cuda:1").prepare()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="sim_device 'cuda:0': .* finds no GPUs; choose 'cpu'"):
        ComputeConfig(sim_device="cuda:0").prepare()


def test_a_gpu_that_cannot_compute_in_bfloat16_is_told_before_the_work(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    with pytest.raises(ConfigError, match="dtype 'bfloat16': Tesla V100 cannot compute in it"):
        ComputeConfig(device="cuda", dtype="bfloat16").prepare()


def test_worlds_on_a_gpu_need_mujoco_warp(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "mujoco_warp" else find_spec(name),
    )
    with pytest.raises(ConfigError, match="sim_device 'cuda:0': MuJoCo Warp is not installed; pip"):
        ComputeConfig(sim_device="cuda:0").prepare()
