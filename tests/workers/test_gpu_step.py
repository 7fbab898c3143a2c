"""How a GPU's worker ends that cannot start, which says whether it is started again."""

from __future__ import annotations

import pytest

from pocqueue.errors import DeviceNotFound, ModelNotFound, PocqueueError
from workers import gpu
from workers.gpu_service import GpuService


@pytest.mark.parametrize(
    ("error", "code"), [(DeviceNotFound("no CUDA device"), 1), (ModelNotFound("no model"), 2)]
)
def test_a_device_that_is_not_there_yet_is_tried_again(
    error: PocqueueError,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Units are not started again after code 2; a driver may come after its worker."""

    def start(_service: object) -> None:
        raise error

    monkeypatch.setattr(GpuService, "start", start)
    monkeypatch.setattr(gpu, "_service", None)
    step = object.__new__(gpu.GpuStep)
    step.queue = "gpu0"
    with pytest.raises(SystemExit) as ended:
        step.start(None)
    assert ended.value.code == code
