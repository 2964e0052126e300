"""What `detector(frame)` on a 1920x1080 frame costs beside its own session.run."""

from __future__ import annotations

from sdk.detector import Detector
from sdk.scenes import MovingScene
from sdk.timing import medians_ms


def run() -> None:
    frame, _, _ = MovingScene((1920, 1080)).frame(1.0)
    for threads in (1, 2):
        detector = Detector(threads=threads)
        prepared = detector.preprocess(frame)
        heads = detector.infer(prepared)
        times = medians_ms(
            {
                "detector(frame)": lambda detector=detector: detector(frame),
                "session.run": lambda detector=detector, prepared=prepared: detector.infer(prepared),
                "preprocess": lambda detector=detector: detector.preprocess(frame),
                "decode": lambda detector=detector, heads=heads, prepared=prepared: detector.decode(heads, prepared),
            },
            rounds=200,
        )
        print(f"{threads} threads: " + "  ".join(f"{name} {ms:.2f} ms" for name, ms in times.items()))
        print(f"  beside session.run: {times['detector(frame)'] - times['session.run']:.2f} ms")
