"""A run of several processes: joining them, and ending all when one is gone.

JAX's coordination service ends every process when one no longer answers, with an abort that says so only in the words
of its own log. What a user reads comes from a witness: a small process beside this one that speaks if this one dies
without having spoken.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import jax

from mbjax.errors import FailureError, InputError, MbjaxError

HEARTBEAT_S = 40  # a process that has not been heard of for so long counts as gone
_GONE = (
    "mbjax: this process was killed, or ended because another process of the run was; start all of them again:"
    " the run goes on from its last checkpoint"
)
_WITNESS = "import sys; sys.stdin.buffer.read() == b'spoken' or print(sys.argv[1], file=sys.stderr)"


@contextlib.contextmanager
def joined(coordinator: str | None, process: int | None, processes: int | None) -> Iterator[None]:
    """Joins the run's other processes for the block; with no coordinator the run is this process alone.

    coordinator is HOST:PORT of process 0. An error inside the block ends this process at once with its line and exit
    status, so that the others notice; one of JAX's own becomes a line about the process that is gone. Raises
    InputError for values that do not go together and FailureError where the others do not come.
    """
    if coordinator is None:
        if processes is not None and processes > 1:
            raise InputError("a run of several processes needs --coordinator HOST:PORT, where process 0 listens")
        yield
        return
    if process is None or processes is None or not 0 <= process < processes:
        raise InputError("--coordinator needs --process N and --processes M, N from 0 to M - 1")
    with _witness() as spoken, _stdout_kept():
        try:
            _initialise(coordinator, process, processes)
            yield
        except BaseException as error:  # noqa: BLE001, this process ends here whatever it was
            message, status = _message(error)
            os.write(2, f"mbjax: {' '.join(message.split())}\n".encode())
            spoken()
            os._exit(status)  # waiting for the others, as leaving in order does, would keep them from noticing
        jax.distributed.shutdown()
        spoken()


def _initialise(coordinator: str, process: int, processes: int) -> None:
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=120,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=HEARTBEAT_S,
        )
    except (RuntimeError, ValueError) as error:
        raise FailureError(f"process {process} of {processes} cannot join at {coordinator}: {error}") from error


def _message(error: BaseException) -> tuple[str, int]:
    if isinstance(error, MbjaxError):
        return str(error), error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    return f"internal error: {type(error).__name__}: {error}", 1


@contextlib.contextmanager
def exchange_errors(step: int) -> Iterator[None]:
    """Turns what JAX raises inside the block, where several processes compute, into a FailureError about a lost one."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = " ".join(str(error).split())[:160]
        raise FailureError(
            f"step {step}: process {jax.process_index()} lost another process of the run ({reason}); start all of them"
            " again: the run goes on from its last checkpoint"
        ) from error


@contextlib.contextmanager
def _stdout_kept() -> Iterator[None]:
    """Sends what C++ libraries print to stderr: Gloo greets its peers on stdout, which belongs to the command."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def _witness() -> Iterator[Callable[[], None]]:
    witness = subprocess.Popen([sys.executable, "-c", _WITNESS, _GONE], stdin=subprocess.PIPE)
    pipe = witness.stdin
    assert pipe is not None

    def spoken() -> None:
        with contextlib.suppress(OSError):
            pipe.write(b"spoken")
            pipe.close()

    try:
        yield spoken
    finally:
        spoken() if not pipe.closed else None
        witness.wait()
