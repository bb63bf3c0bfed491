"""What the device did while something ran, from JAX's profiler: kernels by time, and how much of the time was busy."""

import collections
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def device_events(run: Callable[[], Any], steps: int, most: int = 12) -> dict[str, Any] | None:
    """Runs it under the profiler. Per step: events, busy and spanned microseconds, and the longest kernels.

    None where no device of a kind that the profiler knows took part, as on a CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        file = next(Path(folder).rglob("*.xplane.pb"))
        planes = [p for p in jax.profiler.ProfileData.from_file(str(file)).planes if "GPU" in p.name]
    found = [_line(line, steps, most) for plane in planes for line in plane.lines]
    lines = [line for line in found if line is not None]
    streams = [line for line in lines if line["line"].startswith("Stream")]
    return max(streams or lines, key=lambda line: line["busy_us"], default=None)


def _line(line: Any, steps: int, most: int) -> dict[str, Any] | None:
    events = [(event.name, event.start_ns, event.duration_ns) for event in line.events]
    if not events:
        return None
    busy, count = collections.Counter(), collections.Counter()
    for name, _, duration in events:
        busy[name] += duration
        count[name] += 1
    begin, end = min(start for _, start, _ in events), max(start + duration for _, start, duration in events)
    kernels = [{"name": name[:100], "us": ns / 1e3 / steps, "calls": count[name] / steps}
               for name, ns in busy.most_common(most)]  # fmt: skip
    return {"line": line.name, "events": len(events) / steps, "busy_us": sum(busy.values()) / 1e3 / steps,
            "span_us": (end - begin) / 1e3 / steps, "kernels": kernels}  # fmt: skip
