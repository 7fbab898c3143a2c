"""The row of a GPU's Xid errors: what each means to its owner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pocqueue.hosts.agent.gpu_facts import Gpu
from pocqueue.hosts.agent.kernel_log import Xid
from pocqueue.hosts.agent.messages import TestRow

#: A GPU is out for an error within so many seconds; after that it was reset, or it has another error by now.
FRESH_S = 3600.0

State = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class _Meaning:
    state: State
    what: str
    remedy: str = ""


_RESET = "end what uses it, and reset it: `sudo nvidia-smi -i {index} --gpu-reset`, or reboot"
_MEMORY = _Meaning(
    "fail",
    "an error of its memory that could not be corrected",
    f"{_RESET}; if it comes back, replace the card",
)
_CONTROLLER = _Meaning(
    "fail",
    "its own controller does not answer",
    f"{_RESET}; if it comes back, update the driver, then see to power and heat",
)
_PROGRAM = _Meaning("pass", "a program's own fault, as far as that can be known")
_UNKNOWN = _Meaning(
    "warn",
    "not one of those that are common",
    "look it up: https://docs.nvidia.com/deploy/xid-errors",
)
_MEANINGS = {
    **dict.fromkeys((13, 31, 32, 43, 45, 68, 69, 109), _PROGRAM),
    **dict.fromkeys((48, 95, 140), _MEMORY),
    **dict.fromkeys((38, 61, 62, 119, 120, 143), _CONTROLLER),
    63: _Meaning("warn", "a row of its memory is replaced with the next reset", _RESET),
    64: _Meaning("fail", "a row of its memory could not be replaced", "replace the card"),
    74: _Meaning(
        "fail",
        "an error of NVLink",
        "see `nvidia-smi nvlink -s -i {index}`; seat card and bridge anew, then reboot",
    ),
    79: _Meaning(
        "fail",
        "it fell off the bus",
        "see to its power cables, its riser and its slot, then switch the machine off and on",
    ),
    92: _Meaning(
        "warn",
        "many corrected errors of its memory",
        "see `nvidia-smi -q -d ECC -i {index}`; if they become more, replace the card",
    ),
    94: _Meaning("warn", "an error of its memory that ended one program", _RESET),
}
_ORDER: tuple[State, ...] = ("fail", "warn", "pass")


def is_program(xid: Xid) -> bool:
    """Say whether an error says nothing of the GPU itself."""
    return _MEANINGS.get(xid.code) is _PROGRAM


def xid_row(gpu: Gpu, errors: Iterable[Xid] | None) -> TestRow:
    """Return the row of one GPU: the worst of its errors.

    Args:
        gpu: that is meant.
        errors: of all GPUs; None: the kernel's log cannot be read.
    """
    wanted = "no Xid error in the kernel's log"
    if errors is None:
        return TestRow(
            name="gpu_xid",
            state="skip",
            measured="this user may not read the kernel's log; `sudo dmesg | grep Xid` shows them",
            wanted=wanted,
            gpu=gpu.uuid,
        )
    own = [one for one in errors if one.bus == gpu.bus]
    if not own:
        return TestRow(name="gpu_xid", state="pass", measured="none", wanted=wanted, gpu=gpu.uuid)
    # The newest of the worst.
    worst = min(reversed(own), key=lambda one: _ORDER.index(_state(one)))
    meaning, state = _MEANINGS.get(worst.code, _UNKNOWN), _state(worst)
    return TestRow(
        name="gpu_xid",
        state=state,
        measured=f"Xid {worst.code}, {worst.age_s / 60:.0f} min ago: {meaning.what} ({worst.text[:200]}); in all {len(own)} in a day",
        wanted=wanted,
        remedy="" if state == "pass" else meaning.remedy.format(index=gpu.index),
        gpu=gpu.uuid,
    )


def _state(xid: Xid) -> State:
    state = _MEANINGS.get(xid.code, _UNKNOWN).state
    return "warn" if state == "fail" and xid.age_s > FRESH_S else state
