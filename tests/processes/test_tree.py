"""ProcessTree with real, tiny children: their lines, their order, their restarts and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pocqueue.processes import child_exec
from pocqueue.processes.child import Failure, RestartPolicy, describe_exit
from pocqueue.processes.tree import ProcessTree, log_files, stop_signals
from tests.support.waiting import wait_until

#: As fast as it goes, and as often as by default.
AT_ONCE = RestartPolicy(first_delay_s=0.0)

# SIGTERM is blocked and waited for: a handler could interrupt the very print that says "ready".
SAY_AND_STAY = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("ready", flush=True)
signal.sigwait({signal.SIGTERM})
print("bye", flush=True)
"""

DEAF = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("ready", flush=True)
while signal.sigwait({signal.SIGTERM}):
    print("asked", flush=True)
"""


def python(code: str) -> list[str]:
    """Return the command line of a small Python program that starts quickly."""
    return [sys.executable, "-I", "-S", "-c", code]


class Lines:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []

    def __call__(self, name: str, line: str) -> None:
        self.all.append((name, line))

    def of(self, name: str) -> list[str]:
        return [line for who, line in self.all if who == name]

    def wait_for(self, *expected: tuple[str, str]) -> None:
        """Wait until every one of these was written."""
        wait_until(lambda: set(expected) <= set(self.all), message=f"lines {expected}")


@pytest.fixture
def lines() -> Lines:
    return Lines()


def children() -> list[int]:
    """Return the ids of this process's Python children that lead a session, as those of a tree do."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if process.cmdline()[0] == sys.executable and os.getsid(process.pid) == process.pid:
                found.append(process.pid)
    return found


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def failure_of(tree: ProcessTree, timeout_s: float = 20.0) -> Failure:
    """Wait for the tree's failure."""
    failure = tree.wait(timeout_s)
    assert failure is not None
    return failure


def run_to_its_end(lines: Lines, code: str, env: dict[str, str] | None = None) -> None:
    """Run code that ends with a failure as child `a`."""
    with ProcessTree(lines) as tree:
        tree.add("a", python(code), env)
        tree.start()
        failure_of(tree)


def test_lines_of_both_outputs_reach_the_sink(lines: Lines) -> None:
    """Standard output and standard error arrive line by line, under the child's name."""
    code = "import sys; print('one'); sys.stdout.flush(); sys.stderr.write('two\\n'); sys.exit(2)"
    run_to_its_end(lines, code)
    assert lines.all == [("a", "one"), ("a", "two")]


def test_odd_output_is_passed_on(lines: Lines) -> None:
    """Bytes that are no UTF-8, rewritten lines and a last line without an end do no harm."""
    code = "import os; os.write(1, b'\\xff!\\n 1 %\\r 2 %\\r\\nend'); os._exit(2)"
    run_to_its_end(lines, code)
    assert lines.of("a") == ["\N{REPLACEMENT CHARACTER}!", " 2 %", "end"]


def test_a_child_gets_its_environment_and_no_input(lines: Lines) -> None:
    """`env` is its whole environment, and reading standard input ends at once."""
    code = (
        "import os, sys; print(os.environ.get('WHO'), 'HOME' in os.environ, sys.stdin.read() == '')"
    )
    run_to_its_end(lines, code + "; sys.exit(2)", {"WHO": "me"})
    assert lines.of("a") == ["me False True"]


def test_nothing_goes_through_a_shell(lines: Lines) -> None:
    """Arguments arrive as they were given."""
    odd = "a b; $(echo c) *"
    with ProcessTree(lines) as tree:
        tree.add("a", [*python("import sys; print(sys.argv[1]); sys.exit(2)"), odd])
        tree.start()
        failure_of(tree)
    assert lines.of("a") == [odd]


def test_lines_can_go_to_log_files(tmp_path: Path) -> None:
    """Each child has a file of its own, begun afresh."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_text("of the run before\n")
    with ProcessTree(log_files(tmp_path / "logs")) as tree:
        tree.add("a", python(SAY_AND_STAY))
        tree.add("b", python("print('from b'); raise SystemExit(2)"))
        tree.start()
        assert failure_of(tree).lines == ("from b",)
        log = tmp_path / "logs" / "a.log"
        wait_until(lambda: log.exists() and log.read_text() == "ready\n")
    assert log.read_text() == "ready\nbye\n"


def test_stages_stop_in_reverse_order(lines: Lines) -> None:
    """The stage that started last has ended before the one before is asked to end."""
    with ProcessTree(lines) as tree:
        for name in ("first", "second", "third"):
            tree.add(name, python(SAY_AND_STAY))
            tree.start()
        lines.wait_for(("first", "ready"), ("second", "ready"), ("third", "ready"))
        assert len(children()) == 3
    assert [name for name, line in lines.all if line == "bye"] == ["third", "second", "first"]


def test_a_stage_stops_together(lines: Lines) -> None:
    """Eight deaf workers of one stage take one waiting time, not eight."""
    tree = ProcessTree(lines, stop_timeout_s=0.6)
    for number in range(8):
        tree.add(f"gpu{number}", python(DEAF))
    tree.start()
    lines.wait_for(*((f"gpu{number}", "ready") for number in range(8)))
    pids = children()
    began = time.monotonic()
    tree.close()
    assert time.monotonic() - began < 8 * 0.6
    assert all(is_gone(pid) for pid in pids)


def test_stop_may_be_called_again(lines: Lines) -> None:
    """Stopping what has stopped, or what never started, does nothing."""
    ProcessTree().close()
    tree = ProcessTree(lines)
    tree.add("a", python(SAY_AND_STAY))
    tree.start()
    lines.wait_for(("a", "ready"))
    tree.close()
    tree.close()
    assert lines.of("a") == ["ready", "bye"]
    assert tree.wait(0) is None


def test_a_deaf_child_is_killed_with_all_it_started(lines: Lines) -> None:
    """SIGKILL follows SIGTERM, for grandchildren too."""
    code = f"import subprocess; p = subprocess.Popen({python(DEAF)!r}); print(p.pid)\n{DEAF}"
    with ProcessTree(lines, stop_timeout_s=0.2) as tree:
        tree.add("a", [sys.executable, "-u", "-c", code])
        tree.start()
        wait_until(lambda: lines.of("a").count("ready") == 2)
        pids = [*children(), *(int(line) for line in lines.of("a") if line.isdigit())]
    assert len(pids) == 2
    wait_until(lambda: all(is_gone(pid) for pid in pids))
    assert lines.of("a")[-1] == "[a did not end within 0.2 s and is killed]"


def test_what_an_ended_child_left_behind_is_killed(lines: Lines) -> None:
    """A grandchild in the child's process group does not hold up its restart."""
    code = f"import subprocess; print(subprocess.Popen({python(DEAF)!r}).pid, flush=True)"
    with ProcessTree(lines, restarts=AT_ONCE) as tree:
        tree.add("a", [sys.executable, "-c", code])
        tree.start()
        failure_of(tree)
    pids = [int(line) for line in lines.of("a") if line.isdigit()]
    assert len(pids) == 6
    wait_until(lambda: all(is_gone(pid) for pid in pids))


def test_an_ended_child_starts_again(lines: Lines, tmp_path: Path) -> None:
    """It says so, and nothing has failed."""
    code = f"""
import pathlib, sys
mark = pathlib.Path({str(tmp_path / "mark")!r})
if not mark.exists():
    mark.touch()
    sys.exit(7)
{SAY_AND_STAY}"""
    with ProcessTree(lines, restarts=RestartPolicy(first_delay_s=0.01)) as tree:
        tree.add("a", [sys.executable, "-c", code])
        tree.start()
        lines.wait_for(("a", "ready"))
        assert tree.wait(0) is None
    assert lines.of("a") == ["[a ended with code 7; it starts again in 0.01 s]", "ready", "bye"]


def test_a_killed_child_starts_again(lines: Lines) -> None:
    """As the kernel kills a process when memory is short."""
    with ProcessTree(lines, restarts=AT_ONCE) as tree:
        tree.add("a", python(SAY_AND_STAY))
        tree.start()
        lines.wait_for(("a", "ready"))
        [pid] = children()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: lines.of("a").count("ready") == 2)
    assert "[a was killed by SIGKILL; it starts again in 0 s]" in lines.of("a")


def test_a_signal_reaches_the_child_of_that_name(lines: Lines) -> None:
    """It stands still, goes on, and one that is killed starts again; nobody else hears of it."""
    with ProcessTree(sink=lines, restarts=AT_ONCE) as tree:
        for name in ("one", "other"):
            tree.add(name, python("import os\nprint(os.getpid(), flush=True)\n" + SAY_AND_STAY))
        tree.start()
        wait_until(lambda: "ready" in lines.of("one") and "ready" in lines.of("other"))
        process = psutil.Process(int(lines.of("one")[0]))
        tree.signal("one", signal.SIGSTOP)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
        tree.signal("one", signal.SIGCONT)
        wait_until(lambda: process.status() != psutil.STATUS_STOPPED)
        tree.signal("nobody", signal.SIGKILL)
        tree.signal("one", signal.SIGKILL)
        wait_until(lambda: lines.of("one").count("ready") == 2)
    assert lines.of("other").count("ready") == 1


def test_a_child_that_keeps_ending_is_given_up(lines: Lines) -> None:
    """Five restarts, then a failure with its name and last lines; the others go on until stopped."""
    with ProcessTree(lines, restarts=AT_ONCE) as tree:
        tree.add("good", python(SAY_AND_STAY))
        tree.add("bad", python("print('out of luck'); raise SystemExit(1)"))
        tree.start()
        failure = failure_of(tree)
        lines.wait_for(("good", "ready"))
        assert len(children()) == 1
    assert (failure.name, failure.code, failure.num_exits) == ("bad", 1, 6)
    assert lines.of("bad").count("out of luck") == 6
    assert failure is tree.wait(0)
    said = failure.message
    assert said.startswith("bad ended 6 times in a row; the last time it ended with code 1.")
    assert "out of luck" in said


def test_bad_input_is_not_tried_again(lines: Lines) -> None:
    """Code 2: one start, and the child's own sentence is the message."""
    code = "import sys; sys.stderr.write('noise\\npocqueue: no such GPU.\\n\\n'); sys.exit(2)"
    with ProcessTree(lines) as tree:
        tree.add("gpu1", python(code))
        tree.start()
        failure = failure_of(tree)
    assert failure.is_bad_input
    assert failure.message == "gpu1: no such GPU."
    assert lines.of("gpu1").count("pocqueue: no such GPU.") == 1


def test_a_command_that_does_not_exist_is_bad_input() -> None:
    """The sentence names it."""
    with ProcessTree() as tree:
        tree.add("a", ["/nowhere/to-be-found"])
        tree.start()
        failure = failure_of(tree)
    assert failure.message == "a: /nowhere/to-be-found cannot be run: No such file or directory."


def test_no_restart_while_stopping(lines: Lines) -> None:
    """A child that waits for its restart does not start again."""
    with ProcessTree(lines, restarts=RestartPolicy(first_delay_s=60, max_delay_s=60)) as tree:
        tree.add("a", python("raise SystemExit(1)"))
        tree.start()
        lines.wait_for(("a", "[a ended with code 1; it starts again in 60 s]"))
        assert children() == []
    assert len(lines.all) == 1


def test_a_second_ctrl_c_kills_at_once(lines: Lines) -> None:
    """While a deaf child is given its time, KeyboardInterrupt ends the wait, and all children."""
    tree = ProcessTree(lines, stop_timeout_s=60)
    for name in ("a", "b"):
        tree.add(name, python(DEAF))
        tree.start()
    lines.wait_for(("a", "ready"), ("b", "ready"))
    pids = children()

    def press_ctrl_c() -> None:
        lines.wait_for(("b", "asked"))
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press_ctrl_c)
    # As its users have it; a shell that starts us in the background would have SIGINT ignored.
    with stop_signals():
        presser.start()
        with pytest.raises(KeyboardInterrupt):
            tree.close()
        presser.join()
    assert all(is_gone(pid) for pid in pids)
    assert ("a", "asked") not in lines.all


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stop_signals_interrupt(number: signal.Signals) -> None:
    """Within the block each of them is a KeyboardInterrupt; afterwards all is as before."""
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stop_signals():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_an_ignored_hang_up_stays_ignored() -> None:
    """Under nohup a closed terminal ends nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def owner(code: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that owns a tree."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


OWNER = f"""
import psutil
from pocqueue.processes.tree import ProcessTree
tree = ProcessTree()
tree.add("a", {python(SAY_AND_STAY)!r})
tree.add("b", {python(SAY_AND_STAY)!r})
tree.start()
print(*(child.pid for child in psutil.Process().children()), flush=True)
tree.wait()
"""


def test_children_end_when_their_owner_is_killed() -> None:
    """Even SIGKILL, which nobody can catch, leaves nothing behind."""
    with owner(OWNER) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(is_gone(pid) for pid in pids)
        process.kill()
        wait_until(lambda: all(is_gone(pid) for pid in pids), message="the end of the children")


def test_children_are_out_of_reach_of_ctrl_c(lines: Lines) -> None:
    """Each is the leader of its own session, so the terminal's signals stop at its owner."""
    with ProcessTree(lines) as tree:
        tree.add("a", python(SAY_AND_STAY))
        tree.start()
        lines.wait_for(("a", "ready"))
        [pid] = children()
        assert os.getsid(pid) == os.getpgid(pid) == pid


def test_passed_files_stay_open_in_the_child(lines: Lines) -> None:
    """As the lock of the state folder does; others are closed."""
    reader, writer = os.pipe()
    other, other_end = os.pipe()
    code = f"""
import os, sys
os.write({writer}, b"x")
try:
    os.fstat({other})
except OSError:
    print("closed", flush=True)
sys.exit(2)
"""
    try:
        with ProcessTree(lines) as tree:
            tree.add("a", python(code), pass_fds=[writer])
            tree.start()
            failure_of(tree)
        assert os.read(reader, 1) == b"x"
        assert lines.of("a") == ["closed"]
    finally:
        for fd in (reader, writer, other, other_end):
            os.close(fd)


def test_a_child_of_a_dead_parent_does_not_run() -> None:
    """The wrapper sees that whoever started it is gone, and leaves the command alone."""
    wrapper = [sys.executable, "-I", "-S", child_exec.__file__]
    done = subprocess.run(
        [*wrapper, str(2**22 + 1), *python("print('ran')")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (143, "")


def test_the_wrapper_is_quick() -> None:
    """It costs each start well under 50 ms of processor time."""

    def cpu_s(command: list[str]) -> float:
        before = os.times()
        for _ in range(5):
            subprocess.run(command, check=True)
        after = os.times()
        return (after.children_user + after.children_system) / 5 - (
            before.children_user + before.children_system
        ) / 5

    wrapper = [sys.executable, "-I", "-S", child_exec.__file__, str(os.getpid())]
    assert cpu_s([*wrapper, "true"]) - cpu_s(["true"]) < 0.05


@pytest.mark.parametrize(
    ("num_exits", "delay_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, None)]
)
def test_restart_policy(num_exits: int, delay_s: float | None) -> None:
    """The delay doubles with the exits of the last minute; the sixth of these gives up."""
    assert RestartPolicy().delay_s(num_exits) == delay_s


def test_restart_delay_is_bounded() -> None:
    """However often it ended."""
    assert RestartPolicy(max_restarts=100).delay_s(50) == 10.0


def test_exits_of_long_ago_do_not_count(lines: Lines) -> None:
    """A child that ends now and then is never given up."""
    with ProcessTree(lines, restarts=RestartPolicy(first_delay_s=0.01, window_s=0)) as tree:
        tree.add("a", python("print('ran'); raise SystemExit(1)"))
        tree.start()
        wait_until(lambda: lines.of("a").count("ran") > 7)
        assert tree.wait(0) is None


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "ended with code 0"),
        (1, "ended with code 1"),
        (-9, "was killed by SIGKILL"),
        (-200, "was killed by signal 200"),
    ],
)
def test_exits_are_described(code: int, text: str) -> None:
    """In words that an operator knows."""
    assert describe_exit(code) == text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Failure("a", 2, ("Error: bad port.",)), "a: bad port."),
        (lambda: Failure("a", 2, ("Usage: x", "Error: no.", "  ")), "a: no."),
        (lambda: Failure("a", 2, ("plain", "words")), "a: words"),
        (lambda: Failure("a", 2, ()), "a ended with code 2. It wrote nothing."),
        (lambda: Failure("a", 1, ("x", "", "y")), "a ended with code 1. Its last lines:\n  x\n  y"),
    ],
)
def test_failures_are_described(make: Callable[[], Failure], message: str) -> None:
    """One sentence for bad input, the last lines for everything else."""
    assert make().message == message
