"""The device at hand, as its driver describes it: name, memory, cache, clocks, free bytes.

On NVIDIA GPUs clocks and power come from NVML where `pynvml` is installed, else from `nvidia-smi`,
else they are absent and the record says so. Neither has been asked on a GPU yet.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from moeplan._version import __version__
from moeplan.errors import UserError
from moeplan.profile.record import Clocks, Device, Versions

__all__ = ["cpu_free_bytes", "describe", "free_bytes", "pick", "read_clocks", "versions"]

_FALLBACK_CACHE = 32 << 20  # where the system does not say how large the last cache is


def pick(wanted: str | None) -> torch.device:
    """The device to measure on: the GPU if there is one, else the CPU, or the one asked for.

    Raises UserError for one that is not there.
    """
    if wanted in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(wanted))
    except RuntimeError:
        raise UserError(f"--device {wanted!r}: allowed are auto, cpu, cuda and cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {wanted!r}: allowed are auto, cpu, cuda and cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(
                f"--device {wanted!r}: PyTorch {torch.__version__} sees {count} CUDA devices; "
                "--device cpu runs without one"
            )
    return device


def describe(device: torch.device) -> Device:
    """The device's facts."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        cache = int(getattr(facts, "L2_cache_size", 0)) or _FALLBACK_CACHE
        return Device(
            kind="cuda",
            name=facts.name,
            memory_bytes=int(facts.total_memory),
            cache_bytes=cache,
            cache_source="L2, from the driver" if cache != _FALLBACK_CACHE else "assumed",
            units=int(facts.multi_processor_count),
            capability=f"{facts.major}.{facts.minor}",
            clocks=read_clocks(device),
        )
    cache, source = _cpu_cache()
    return Device(
        kind="cpu",
        name=_cpu_name(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cache_bytes=cache,
        cache_source=source,
        units=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        clocks=read_clocks(device),
    )


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else (platform.processor() or platform.machine() or "cpu")


def _cpu_cache() -> tuple[int, str]:
    """Size of the processor's last cache, and who says so."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KMG])", file.read_text().strip())
        if found:
            sizes.append(int(found[1]) * units[found[2]])
    return (max(sizes), "last level, from the system") if sizes else (_FALLBACK_CACHE, "assumed")


def free_bytes(device: torch.device) -> int:
    """Bytes that a computation on the device can still take."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return cpu_free_bytes()


def cpu_free_bytes() -> int:
    """Memory that the system, and the limit of the container, leave available."""
    left = [_meminfo("MemAvailable")]
    groups = Path("/sys/fs/cgroup")
    for limit, used in (
        (groups / "memory.max", groups / "memory.current"),
        (groups / "memory/memory.limit_in_bytes", groups / "memory/memory.usage_in_bytes"),
    ):
        try:
            left.append(int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    return max(min(left), 0)


def _meminfo(key: str) -> int:
    try:
        found = re.search(rf"^{key}:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def versions(device: torch.device) -> Versions:
    """Software that the figures depend on."""
    cuda = device.type == "cuda"
    return Versions(
        moeplan=__version__,
        python=".".join(map(str, sys.version_info[:3])),
        torch=torch.__version__,
        triton=_installed("triton"),
        cuda=torch.version.cuda if cuda else None,
        driver=_driver() if cuda else None,
    )


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    if find_spec("pynvml") is not None:
        nvml = import_module("pynvml")
        try:
            nvml.nvmlInit()
            name = nvml.nvmlSystemGetDriverVersion()
            return name.decode() if isinstance(name, bytes) else str(name)
        except nvml.NVMLError:
            pass
    found = _smi(("driver_version",), 0)
    return found[0] if found else None


# --------------------------------------------------------------------------------- clocks
def read_clocks(device: torch.device) -> Clocks:
    """Clocks, power and reasons for throttling, now."""
    if device.type == "cpu":
        return _cpu_clocks()
    number: int | None = device.index  # None for "cuda", whatever torch's stubs say
    index = torch.cuda.current_device() if number is None else number
    read = _nvml_clocks(index) if find_spec("pynvml") is not None else None
    read = read or _smi_clocks(index)
    return read or Clocks(source="absent: neither pynvml nor nvidia-smi could be asked")


def _cpu_clocks() -> Clocks:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return Clocks(source="absent: no /proc/cpuinfo", load=load)
    mhz = [float(m) for m in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.M)]
    fastest = max(mhz) if mhz else None
    return Clocks(source="/proc/cpuinfo, load average of a minute", clock_mhz=fastest, load=load)


_REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal, by software",
    0x40: "thermal, by hardware",
    0x80: "power brake",
}
"""Bits of NVML's clocks event reasons (nvml.h) that hold a busy GPU's clocks down."""


def throttle_reasons(bits: int) -> list[str]:
    """The reasons among NVML's bits that make a figure too slow."""
    return [name for bit, name in _REASONS.items() if bits & bit]


def _nvml_clocks(index: int) -> Clocks | None:
    nvml: Any = import_module("pynvml")
    try:
        nvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(index).uuid
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return Clocks(
            source="NVML",
            clock_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            memory_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            power_w=nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            power_limit_w=nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            temperature_c=nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            throttle=throttle_reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        )
    except (nvml.NVMLError, AttributeError):  # a figure that this card or driver does not give
        return None


_SMI_FIELDS = (
    "clocks.sm", "clocks.mem", "power.draw", "enforced.power.limit", "temperature.gpu",
)  # fmt: skip


def _smi(fields: Sequence[str], index: int) -> list[str] | None:
    """Values that nvidia-smi prints for one GPU, or None where it cannot be asked."""
    uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
    which = f"GPU-{uuid}" if uuid else str(index)
    query = ["nvidia-smi", f"--id={which}", f"--query-gpu={','.join(fields)}"]
    try:
        said = subprocess.run(
            [*query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return [value.strip() for value in said.splitlines()[0].split(",")] if said.strip() else None


_SMI_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # new, old


def _smi_clocks(index: int) -> Clocks | None:
    """One call gives all; an older driver refuses the new name, and one more call is needed."""
    for name in _SMI_REASONS:
        found = _smi((*_SMI_FIELDS, name), index)
        if found is not None:
            return smi_clocks(found[:-1], found[-1])
    found = _smi(_SMI_FIELDS, index)
    return None if found is None else smi_clocks(found, "")


def smi_clocks(values: Sequence[str], bits: str) -> Clocks:
    """What nvidia-smi printed for `_SMI_FIELDS` and the event reasons, as figures."""
    numbers = [float(v) if re.fullmatch(r"[\d.]+", v) else None for v in values]
    reasons = int(bits, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", bits) else 0
    clock, memory, power, limit, temperature = numbers
    return Clocks(
        source="nvidia-smi",
        clock_mhz=clock,
        memory_mhz=memory,
        power_w=power,
        power_limit_w=limit,
        temperature_c=temperature,
        throttle=throttle_reasons(reasons),
    )
