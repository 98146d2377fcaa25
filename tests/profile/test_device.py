"""What a device says about itself: clocks from NVML or nvidia-smi, or the reason for none."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from moeplan.profile import device

CPU = torch.device("cpu")


def test_nvidia_smi_is_read() -> None:
    read = device.smi_clocks(["1980", "3201", "650.12", "700.00", "61"], "0x0000000000000044")
    assert (read.clock_mhz, read.memory_mhz, read.power_w, read.power_limit_w) == (
        1980, 3201, 650.12, 700,
    )  # fmt: skip
    assert read.throttle == ["power cap", "thermal, by hardware"]
    absent = device.smi_clocks(["[N/A]", "3201", "[N/A]", "700", "61"], "[N/A]")
    assert (absent.clock_mhz, absent.power_w, absent.throttle) == (None, None, [])


class _Nvml:
    """As much of pynvml as is asked, of a card that its power cap holds down."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, *, present: bool) -> None:
        self.present = present

    def nvmlInit(self) -> None:
        if not self.present:
            raise self.NVMLError("library not found")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-17"
        return uuid

    def nvmlDeviceGetClockInfo(self, _handle: str, which: int) -> int:
        return {1: 1755, 2: 3201}[which]

    def nvmlDeviceGetPowerUsage(self, _handle: str) -> int:
        return 699_500

    def nvmlDeviceGetEnforcedPowerLimit(self, _handle: str) -> int:
        return 700_000

    def nvmlDeviceGetTemperature(self, _handle: str, _sensor: int) -> int:
        return 64

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, _handle: str) -> int:
        return 0x4


@pytest.mark.parametrize("present", [True, False])
def test_nvml_is_asked_first_and_may_be_absent(
    present: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def smi(fields: Sequence[str], _index: int) -> list[str] | None:
        asked.append(tuple(fields))
        return None if "clocks_event_reasons.active" in fields else ["1", "2", "3", "4", "5", "0x8"]

    monkeypatch.setitem(sys.modules, "pynvml", _Nvml(present=present))  # type: ignore[arg-type]
    monkeypatch.setattr(device, "find_spec", lambda _: True)
    monkeypatch.setattr(device, "_smi", smi)
    card = SimpleNamespace(uuid="17")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    read = device.read_clocks(torch.device("cuda", 0))
    if present:
        assert (read.source, read.clock_mhz, read.power_w) == ("NVML", 1755, 699.5)
        assert read.throttle == ["power cap"]
        assert asked == []
    else:
        assert (read.source, read.clock_mhz) == ("nvidia-smi", 1)
        assert read.throttle == ["hardware slowdown"]
        assert len(asked) == 2  # the name that older drivers know
    monkeypatch.setattr(device, "_smi", lambda *_: None)
    monkeypatch.setattr(device, "find_spec", lambda _: None)
    assert device.read_clocks(torch.device("cuda", 0)).source.startswith("absent")


def test_idle_clocks_are_no_throttling() -> None:
    assert device.throttle_reasons(0x1) == []  # GPU idle
    assert device.throttle_reasons(0x80) == ["power brake"]


def test_the_cpu_describes_itself() -> None:
    facts = device.describe(CPU)
    assert facts.kind == "cpu"
    assert facts.name
    assert 0 < device.free_bytes(CPU) <= facts.memory_bytes
    assert facts.units == torch.get_num_threads()
    assert device.versions(CPU).torch == torch.__version__
