"""Which device a queue stands for, with any number of CUDA devices."""

from __future__ import annotations

import pytest

from pocqueue.engine import devices
from pocqueue.errors import DeviceNotFound, SettingsError


def _have(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(devices, "cuda_device_count", lambda: count)


@pytest.mark.parametrize(
    ("count", "name", "setting", "device"),
    [
        (0, "gpu0", "auto", "cpu"),
        (0, "gpu5", "cpu", "cpu"),
        (8, "gpu5", "cpu", "cpu"),
        (2, "gpu1", "auto", "cuda:1"),
        (2, "host.gpu1", "cuda", "cuda:1"),
        (2, "gpu0", "cuda:1", "cuda:1"),
        (2, "gpu7", "cuda:1", "cuda:1"),
        (2, "gpu7", "auto", "Queue gpu7 names CUDA device 7, but this machine has 2 (0 to 1)"),
        (1, "gpu1", "cuda", "this machine has 1 (device 0)"),
        (0, "gpu1", "auto", "POCQUEUE_DEVICE=cpu"),
        (0, "gpu0", "cuda", "no CUDA device"),
        (1, "gpu0", "cuda:1", "POCQUEUE_DEVICE=cuda:1 names CUDA device 1"),
        (1, "io", "auto", "Queue 'io' is not a GPU queue"),
    ],
)
def test_a_queue_names_a_device(
    monkeypatch: pytest.MonkeyPatch, count: int, name: str, setting: str, device: str
) -> None:
    """The setting decides how far the queue's index does; a device that is not there is named."""
    _have(monkeypatch, count)
    if device in {"cpu", "cuda:1"}:
        assert devices.device_for_queue(name, setting) == device
        return
    with pytest.raises(DeviceNotFound) as caught:
        devices.device_for_queue(name, setting)
    assert device in str(caught.value)


def test_a_queue_of_several_devices_names_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs a queue: gpu0 has devices 0 and 1, gpu1 has 2 and 3; all of them must exist."""
    _have(monkeypatch, 4)
    assert devices.device_for_queue("gpu0", "auto", 2) == "cuda:0"
    assert devices.device_for_queue("gpu1", "cuda", 2) == "cuda:2"
    assert devices.device_for_queue("gpu0", "cuda:1", 2) == "cuda:1"
    with pytest.raises(DeviceNotFound, match="names CUDA device 5, but this machine has 4"):
        devices.device_for_queue("gpu2", "auto", 2)


@pytest.mark.parametrize("setting", ["", "gpu", "cuda:", "cuda:-1", "CPU", "cuda:1x"])
def test_another_setting_is_refused(setting: str) -> None:
    """Allowed values are listed."""
    with pytest.raises(SettingsError, match="allowed: auto, cpu, cuda"):
        devices.device_for_queue("gpu0", setting)
