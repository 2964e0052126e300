"""What a calibration cost and gained, as JSON and as a few lines of text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .photographs import Unreadable
from .ranges import Ranges


@dataclass(frozen=True)
class Report:
    """Everything about one INT8 model.

    Attributes:
        model, output: the float file and the INT8 file.
        ranges: of the activations, with their method and photographs.
        unreadable: photographs that were left out.
        float_convs: convolutions that stay in float.
        file_bytes: "fp32" and "int8" -> size.
        latency_ms: "fp32" and "int8" -> median of one frame, one thread, on this machine.
        accuracy: "fp32" and "int8" -> COCO figures; None where nothing was annotated.
        num_evaluated: photographs that the accuracy was measured on.
    """

    model: Path
    output: Path
    ranges: Ranges
    unreadable: tuple[Unreadable, ...]
    float_convs: tuple[str, ...]
    file_bytes: dict[str, int]
    latency_ms: dict[str, float]
    accuracy: dict[str, dict[str, Any]] | None
    num_evaluated: int

    @property
    def speedup(self) -> float:
        """How many times faster INT8 is than float, here."""
        return self.latency_ms["fp32"] / self.latency_ms["int8"]

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": str(self.model),
            "output": str(self.output),
            "method": self.ranges.method,
            "images": [asdict(photograph) for photograph in self.ranges.photographs],
            "unreadable": [asdict(entry) for entry in self.unreadable],
            "ranges": {name: asdict(bounds) for name, bounds in self.ranges.tensors.items()},
            "constant_tensors": self.ranges.constant,
            "float_convs": list(self.float_convs),
            "file_bytes": self.file_bytes,
            "latency_ms": self.latency_ms,
            "int8_is_faster_here": self.speedup > 1.0,
            "accuracy": self.accuracy,
            "num_evaluated": self.num_evaluated,
        }

    def to_text(self) -> str:
        """A table and the sentences that go with it."""
        rows = [f"{'':<14} {'FP32':>10} {'INT8':>10} {'difference':>11}"]
        for name, figure in (
            ("box AP", ("bbox", "AP")),
            ("box AP50", ("bbox", "AP50")),
            ("keypoint AP", ("keypoints", "AP")),
        ):
            rows += self._accuracy_row(name, *figure)
        before, after = (self.latency_ms[name] for name in ("fp32", "int8"))
        rows.append(f"{'latency, ms':<14} {before:>10.2f} {after:>10.2f} {f'{self.speedup:.2f}x faster':>11}")
        before, after = (self.file_bytes[name] / 1e6 for name in ("fp32", "int8"))
        rows.append(f"{'file, MB':<14} {before:>10.2f} {after:>10.2f}")
        return "\n".join([*rows, *self._sentences()])

    def _accuracy_row(self, name: str, kind: str, figure: str) -> list[str]:
        if self.accuracy is None or kind not in self.accuracy["fp32"]:
            return []
        before, after = (self.accuracy[model][kind][figure] for model in ("fp32", "int8"))
        if before is None or after is None:
            return []
        return [f"{name:<14} {before:>10.4f} {after:>10.4f} {after - before:>+11.4f}"]

    def _sentences(self) -> list[str]:
        count = len(self.ranges.photographs)
        sentences = [f"Ranges by {self.ranges.method} from {count} photographs; latency with 1 thread."]
        if self.accuracy is None:
            sentences.append(
                "Accuracy was not measured; --eval-images and --eval-annotations, or --annotations, do it."
            )
        else:
            sentences.append(f"Accuracy on {self.num_evaluated} photographs that were not calibrated on.")
        if self.speedup <= 1.0:
            sentences.append("INT8 is not faster here.")
        if self.ranges.constant:
            sentences.append(
                f"{len(self.ranges.constant)} activations never changed: {', '.join(self.ranges.constant)}."
            )
        sentences += [f"Left out: {entry.reason}" for entry in self.unreadable]
        return sentences
