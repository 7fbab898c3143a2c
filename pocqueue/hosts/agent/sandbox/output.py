"""The output of a job: its beginning and its end are kept, however much there is between them."""

from __future__ import annotations


class Output:
    """Takes bytes, and keeps so many of them.

    Args:
        kept_bytes: at most; half of them of the beginning.
    """

    def __init__(self, kept_bytes: int) -> None:
        self._half = kept_bytes // 2
        self._head = bytearray()
        self._tail = bytearray()
        #: Bytes that were taken.
        self.total = 0

    def feed(self, data: bytes) -> None:
        """Take some more."""
        self.total += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[max(0, room) :]
        # Rarely, as it moves what is left.
        if len(self._tail) > 4 * self._half:
            del self._tail[: -self._half]

    @property
    def left_out(self) -> int:
        """Bytes that are not kept."""
        return max(0, self.total - 2 * self._half)

    def text(self) -> str:
        """Return what is kept; what is no UTF-8 is replaced. A line between the two parts says what is left out."""
        head, tail = bytes(self._head), bytes(self._tail[-self._half :])
        if not self.left_out:
            return (head + tail).decode("utf-8", "replace")
        between = f"\n[{self.left_out} bytes left out]\n"
        return f"{head.decode('utf-8', 'replace')}{between}{tail.decode('utf-8', 'replace')}"
