"""How a GPU's worker ends that cannot start, which says whether it is started again."""

from __future__ import annotations

import pytest

from pocqueue.errors import DeviceNotFound, ModelNotFound, PocqueueError
from workers import gpu
from workers.gpu_service import GpuService


@pytest.mark.parametrize(
    ("error", "under_systemd", "code"),
    [
        (DeviceNotFound("no CUDA device"), True, 1),
        (DeviceNotFound("no CUDA device"), False, 2),
        (ModelNotFound("no model"), True, 2),
    ],
)
def test_a_device_that_is_not_there_yet_is_tried_again(
    error: PocqueueError,
    under_systemd: bool,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Units are not started again after code 2; a driver may come after its worker."""

    def start(_service: object) -> None:
        raise error

    monkeypatch.delenv("INVOCATION_ID", raising=False)
    if under_systemd:
        monkeypatch.setenv("INVOCATION_ID", "0" * 32)
    monkeypatch.setattr(GpuService, "start", start)
    monkeypatch.setattr(gpu, "_service", None)
    step = object.__new__(gpu.GpuStep)
    step.queue = "gpu0"
    with pytest.raises(SystemExit) as ended:
        step.start(None)
    assert ended.value.code == code
