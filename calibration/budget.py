"""An accuracy budget: layers go back to float, in order of damage per millisecond, until INT8 loses little enough.

::

    result = hold_budget(
        model, quantise_except, groups, evaluation, max_ap_drop=0.005, frames=frames, latency=latency_here
    )
    int8_model = result.model
    print("\\n".join(result.sentences()))

Whatever is chosen by its AP has an AP that is partly luck. So where layers have to be chosen, the photographs are
divided: one half chooses, the other, which took no part in the choice, says what came of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from sdk.errors import ConfigError

from .errors import CalibrationError
from .sensitivity import (
    Accuracy,
    Deployed,
    Evaluate,
    Latency,
    LayerGroup,
    Note,
    QuantiseExcept,
    Sensitivity,
    accuracy_on,
    ap_drop,
    ap_noise,
    sensitivity,
)
from .sets import AnnotatedSet

MAX_STEPS = 12  # each costs one evaluation
MAX_FLOAT_SHARE = 0.5  # of the multiply-accumulates; beyond that it is hardly an INT8 model
MAX_CHOOSING = 500  # photographs; more make the choice slow and hardly better
_MIN_PHOTOGRAPHS = 4  # two in each half


@dataclass(frozen=True)
class Step:
    """One group that was tried in float, besides those that are already.

    Attributes:
        group: its name.
        ap_drop: AP that is lost with it, on the photographs of the choice.
        kept: whether it stays in float; one that brought nothing does not.
    """

    group: str
    ap_drop: float
    kept: bool


@dataclass(frozen=True)
class Choice:
    """What `choose_float_groups` found.

    Attributes:
        model: the INT8 model with the groups in float.
        float_nodes: names of the nodes in float.
        steps: what was tried, in order.
        ap_drop: that is left, on the photographs of the choice.
        reached: whether that is as little as was wanted.
    """

    model: onnx.ModelProto
    float_nodes: frozenset[str]
    steps: tuple[Step, ...]
    ap_drop: float
    reached: bool

    @property
    def float_groups(self) -> tuple[str, ...]:
        """Names of the groups in float."""
        return tuple(step.group for step in self.steps if step.kept)


@dataclass(frozen=True)
class Budget:
    """Whether the budget holds, and what that took.

    Attributes:
        max_ap_drop: the budget: AP that may be lost, of the kind that loses most.
        model: the INT8 model that comes closest.
        evaluation: the photographs that `accuracy` was measured on, and that the report should be about.
        accuracy: "fp32", "int8" (with nothing in float) and "final" -> AP.
        choice: None where everything could stay in INT8.
        choosing: the photographs that layers were chosen on; None as above.
        sensitivity: of the groups, on these photographs; None as above.
        latency_ms: "fp32", "int8" and "final" -> a frame; None where it was not measured.
    """

    max_ap_drop: float
    model: onnx.ModelProto
    evaluation: AnnotatedSet
    accuracy: dict[str, Accuracy]
    choice: Choice | None = None
    choosing: AnnotatedSet | None = None
    sensitivity: Sensitivity | None = None
    latency_ms: dict[str, float] | None = None

    @property
    def ap_drop(self) -> float:
        """AP that is lost in the end."""
        return ap_drop(self.accuracy["fp32"], self.accuracy["final"])

    @property
    def holds(self) -> bool:
        return self.ap_drop <= self.max_ap_drop

    @property
    def float_nodes(self) -> frozenset[str]:
        """Names of the nodes that went back to float."""
        return self.choice.float_nodes if self.choice else frozenset()

    def to_dict(self) -> dict[str, Any]:
        return {
            "max_ap_drop": self.max_ap_drop,
            "ap_drop": self.ap_drop,
            "holds": self.holds,
            "num_evaluated": len(self.evaluation.files),
            "num_choosing": len(self.choosing.files) if self.choosing else 0,
            "accuracy": {name: dict(figures) for name, figures in self.accuracy.items()},
            "latency_ms": self.latency_ms,
            "float_groups": list(self.choice.float_groups) if self.choice else [],
            "float_nodes": sorted(self.float_nodes),
            "steps": [vars(step) for step in self.choice.steps] if self.choice else [],
            "sensitivity": self.sensitivity.to_dict() if self.sensitivity else None,
        }

    def sentences(self) -> list[str]:
        """What a person should know, a sentence a line."""
        lines = [f"At most {self.max_ap_drop:.4f} AP may be lost (--max-ap-drop)."]
        if self.choice is None:
            return [*lines, f"INT8 loses {_loss(self.ap_drop)}: it holds, and nothing had to go back to float."]
        assert self.choosing is not None and self.sensitivity is not None and self.sensitivity.ap_drop is not None
        before = ap_drop(self.accuracy["fp32"], self.accuracy["int8"])
        groups = ", ".join(self.choice.float_groups) or "nothing"
        lines += [
            f"Layers were chosen on {len(self.choosing.files)} photographs, where INT8 lost "
            f"{_loss(self.sensitivity.ap_drop)} and loses {_loss(self.choice.ap_drop)} now.",
            f"Back in float: {groups}{self._costs()}.",
            f"On the {len(self.evaluation.files)} others, which took no part in the choice, INT8 lost "
            f"{_loss(before)} and loses {_loss(self.ap_drop)} now. Quote this: the figure on photographs that chose is "
            "partly luck.",
        ]
        if self.holds:
            return [*lines, "The budget holds."]
        where = (
            "here, though it does on the photographs that chose"
            if self.choice.reached
            else f"with as much in float as makes sense (up to {MAX_FLOAT_SHARE:.0%} of the network)"
        )
        lines.append(
            f"THE BUDGET DOES NOT HOLD {where}. This is the model that comes closest. Fine-tune the checkpoint as it "
            "will be quantised, and calibrate again: `centeredge train --init CHECKPOINT --set "
            "fake_quantise=INT8.onnx`."
        )
        noise = ap_noise(self.evaluation)
        if self.max_ap_drop < noise:
            lines.append(
                f"{len(self.evaluation.files)} photographs cannot tell a loss below {noise:.4f} AP from chance; more "
                "of them may show that it holds."
            )
        return lines

    def _costs(self) -> str:
        if self.latency_ms is None:
            return ""
        fp32, int8, final = (self.latency_ms[name] for name in ("fp32", "int8", "final"))
        slower = "" if final < fp32 else ", which is no faster than FP32"
        return f" ({int8:.2f} ms became {final:.2f} ms, FP32 takes {fp32:.2f}{slower})"


def hold_budget(
    model: onnx.ModelProto,
    quantise_except: QuantiseExcept,
    groups: Sequence[LayerGroup],
    evaluation: AnnotatedSet | None,
    *,
    max_ap_drop: float,
    frames: Sequence[npt.NDArray[np.uint8]],
    deployed: Deployed | None = None,
    latency: Latency | None = None,
    seed: int = 0,
    note: Note = lambda text: None,
) -> Budget:
    """The INT8 model that loses no more AP than it may, with as little in float as that takes.

    Args:
        model: in float, dense.
        quantise_except: gives its INT8 form with some nodes in float.
        groups: from `layer_groups`.
        evaluation: annotated photographs, none of which was calibrated on.
        max_ap_drop: AP that may be lost, of box AP and keypoint AP the one that loses more.
        frames: as for `sensitivity`.
        deployed: as for `accuracy_on`: the loss that counts is that of the file.
        latency: as for `sensitivity`.
        seed: divides the photographs, where layers have to be chosen.
        note: is told what is being done.

    Raises:
        ConfigError: the budget is not between 0 and 1, or there are no annotated photographs.
        CalibrationError: there are too few of them to divide.
    """
    if not 0.0 <= max_ap_drop < 1.0:
        raise ConfigError(f"--max-ap-drop {max_ap_drop} is no loss of AP; expected 0 or more and less than 1: 0.005")
    if evaluation is None:
        raise ConfigError(
            "--max-ap-drop needs annotated photographs to measure AP on; name --eval-images and --eval-annotations, "
            "or --annotations"
        )
    note(f"measuring what INT8 costs on {len(evaluation.files)} photographs")
    int8 = quantise_except(())
    evaluate = accuracy_on(evaluation, deployed=deployed)
    fp32_accuracy, int8_accuracy = evaluate(model), evaluate(int8)
    before = Budget(
        max_ap_drop, int8, evaluation, {"fp32": fp32_accuracy, "int8": int8_accuracy, "final": int8_accuracy}
    )
    if before.holds:
        return before
    note(f"INT8 loses {before.ap_drop:.4f} AP, more than {max_ap_drop:.4f}: choosing layers to leave in float")
    choosing, others = divide(evaluation, seed=seed)
    evaluate = accuracy_on(choosing, deployed=deployed)
    found = sensitivity(
        model,
        quantise_except,
        groups,
        frames=frames,
        evaluate=evaluate,
        noise_ap=ap_noise(choosing),
        latency=latency,
        note=note,
    )
    assert found.ap_drop is not None
    goal = _goal(max_ap_drop, over_all=before.ap_drop, on_half=found.ap_drop)
    choice = choose_float_groups(found, quantise_except, int8, evaluate=evaluate, max_ap_drop=goal, note=note)
    confirm = accuracy_on(others, deployed=deployed)
    models = {"fp32": model, "int8": int8, "final": choice.model}
    return replace(
        before,
        model=choice.model,
        evaluation=others,
        accuracy={name: confirm(each) for name, each in models.items()},
        choice=choice,
        choosing=choosing,
        sensitivity=found,
        latency_ms=dict(zip(models, latency(list(models.values())), strict=True)) if latency else None,
    )


def choose_float_groups(
    found: Sensitivity,
    quantise_except: QuantiseExcept,
    int8: onnx.ModelProto,
    *,
    evaluate: Evaluate,
    max_ap_drop: float,
    note: Note = lambda text: None,
) -> Choice:
    """Leave one group after the other in float, until no more than `max_ap_drop` is lost.

    Greedy, by falling damage per millisecond (`Sensitivity.by_damage`), measured anew after each step: what does not
    help beside those before it goes back to INT8. At most MAX_STEPS are tried, and never more than MAX_FLOAT_SHARE of
    the network stays in float.

    Args:
        found: with accuracy, on the same photographs.
        quantise_except: as for `sensitivity`.
        int8: with nothing in float.
        evaluate: as for `sensitivity`.
        max_ap_drop: AP that may be lost.
        note: is told of each step.
    """
    assert found.accuracy is not None and found.ap_drop is not None
    choice = Choice(int8, frozenset(), (), found.ap_drop, reached=found.ap_drop <= max_ap_drop)
    for entry in found.by_damage:
        nodes = choice.float_nodes | entry.group.nodes
        if choice.reached or len(choice.steps) == MAX_STEPS:
            break
        if nodes == choice.float_nodes or found.mac_share(nodes) > MAX_FLOAT_SHARE:
            continue
        candidate = quantise_except(nodes)
        drop = ap_drop(found.accuracy["fp32"], evaluate(candidate))
        step = Step(entry.group.name, drop, kept=drop < choice.ap_drop)
        note(f"with {step.group} in float, INT8 loses {_loss(drop)}{'' if step.kept else '; it stays in INT8'}")
        steps = (*choice.steps, step)
        if step.kept:
            choice = Choice(candidate, nodes, steps, drop, reached=drop <= max_ap_drop)
        else:
            choice = replace(choice, steps=steps)
    return choice


def divide(evaluation: AnnotatedSet, *, seed: int) -> tuple[AnnotatedSet, AnnotatedSet]:
    """Half of the photographs, at most MAX_CHOOSING, and all others, at random.

    Raises:
        CalibrationError: there are too few.
    """
    items = list(evaluation.files.items())
    if len(items) < _MIN_PHOTOGRAPHS:
        raise CalibrationError(
            f"{len(items)} photographs are too few to choose layers on some and measure accuracy on others; name at "
            f"least {_MIN_PHOTOGRAPHS}, better some hundred"
        )
    order = np.random.default_rng(seed).permutation(len(items))
    first = min(len(items) // 2, MAX_CHOOSING)
    halves = [dict(items[index] for index in sorted(part)) for part in (order[:first], order[first:])]
    choosing, others = (replace(evaluation, files=files) for files in halves)
    return choosing, others


def _goal(max_ap_drop: float, *, over_all: float, on_half: float) -> float:
    """Loss to reach on the half that chooses; where it happens to show less than all do, as much less as is missing.

    >>> _goal(0.005, over_all=0.020, on_half=0.025)
    0.005
    >>> round(_goal(0.005, over_all=0.006, on_half=0.004), 6)
    0.003
    """
    return min(max_ap_drop, on_half - (over_all - max_ap_drop))


def _loss(drop: float) -> str:
    """In words.

    >>> _loss(0.0123), _loss(-0.0011)
    ('0.0123 AP', 'nothing (0.0011 AP more than FP32)')
    """
    return f"{drop:.4f} AP" if drop >= 0.00005 else f"nothing ({max(0.0, -drop):.4f} AP more than FP32)"
