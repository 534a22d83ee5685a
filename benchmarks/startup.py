"""Time of `import backbones` beside `import timm`, in fresh processes, alternating; prints medians and the ratio."""

import statistics
import subprocess
import sys
import time

ROUNDS = 9


def seconds(module: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - started


def main() -> None:
    names = ("backbones", "timm")
    for name in names:
        seconds(name)  # fills the disk cache
    ours, peer = (statistics.median(side) for side in zip(*([seconds(name) for name in names] for _ in range(ROUNDS))))
    print(f"import backbones {ours:.2f} s, import timm {peer:.2f} s, medians of {ROUNDS}: ratio {ours / peer:.2f}")


if __name__ == "__main__":
    main()
