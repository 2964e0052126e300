"""Run the benchmarks: all of them, or those named.

python -m benchmarks [imports decoding overhead speed memory accuracy loading kitti deformable lowering calibration]
"""

from __future__ import annotations

import sys

from . import accuracy, calibration, decoding, deformable, imports, kitti, loading, lowering, memory, overhead, speed

BENCHMARKS = {
    "imports": imports.run,
    "decoding": decoding.run,
    "overhead": overhead.run,
    "speed": speed.run,
    "memory": memory.run,
    "accuracy": accuracy.run,
    "loading": loading.run,
    "kitti": kitti.run,
    "deformable": deformable.run,
    "lowering": lowering.run,
    "calibration": calibration.run,
}


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names or BENCHMARKS:
        print(f"== {name}", flush=True)
        BENCHMARKS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
