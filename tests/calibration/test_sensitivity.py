"""Which part of a network costs accuracy in INT8, and how little of it goes back to float for a budget."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import onnx
import pytest

from calibration import budget
from calibration.budget import Budget, choose_float_groups, divide, hold_budget
from calibration.collection import collect_statistics
from calibration.errors import CalibrationError
from calibration.methods import Range
from calibration.placement import place
from calibration.quantisation import quantise
from calibration.ranges import ranges_from_statistics
from calibration.sensitivity import (
    GroupSensitivity,
    LayerGroup,
    Sensitivity,
    ap_drop,
    latency_here,
    layer_groups,
    multiply_accumulates,
    sensitivity,
)
from calibration.sets import AnnotatedSet
from sdk.detector import Detector
from sdk.errors import ConfigError
from sdk.preprocessing import prepare
from sdk.scenes import random_scene
from sdk.sources.images import read_image
from sdk.spec import COCO_KEYPOINT_NAMES

from .conftest import FloatModel

INSIDE, BETWEEN = "stages.2.0.relu.Relu", "stages.3.0.relu.Relu_2"  # tensors: in a part, and from it to the next


@dataclass(frozen=True)
class Quantiser:
    """The INT8 form of a model by its ranges, and what was asked of it."""

    model: onnx.ModelProto
    ranges: Mapping[str, Range]

    def __call__(self, float_nodes: Collection[str]) -> onnx.ModelProto:
        return quantise(self.model, self.ranges, float_nodes=float_nodes)

    def damaged(self, tensor: str) -> Quantiser:
        """The range of a tensor is so wide that a few steps are left of it."""
        bounds = self.ranges[tensor]
        return Quantiser(self.model, {**self.ranges, tensor: Range(50 * bounds.low, 50 * bounds.high)})


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [random_scene(rng, (120, 80))[0] for _ in range(8)]


@pytest.fixture(scope="module")
def frames(float_model: FloatModel, pictures: list[np.ndarray]) -> list[np.ndarray]:
    return [prepare(picture, float_model.spec).tensor for picture in pictures[:3]]


@pytest.fixture(scope="module")
def quantiser(float_model: FloatModel, pictures: list[np.ndarray]) -> Quantiser:
    statistics = collect_statistics(float_model.proto, float_model.spec, pictures, total=len(pictures))
    return Quantiser(float_model.proto, ranges_from_statistics(float_model.proto, statistics, "minmax"))


@pytest.fixture(scope="module")
def groups(float_model: FloatModel) -> list[LayerGroup]:
    graph = float_model.proto.graph
    return layer_groups(graph, place(graph).int8)


@pytest.fixture(scope="module")
def own_findings(
    float_model: FloatModel, pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> AnnotatedSet:
    """Pictures annotated with what the float model finds in them: INT8 has something to lose."""
    folder = tmp_path_factory.mktemp("own")
    images, annotations, files = [], [], {}
    with Detector(float_model.path, score_threshold=0.0) as detector:
        for number, picture in enumerate(pictures, 1):
            files[number] = folder / f"{number}.png"
            assert cv2.imwrite(str(files[number]), picture)
            height, width = picture.shape[:2]
            images.append({"id": number, "file_name": files[number].name, "width": width, "height": height})
            found = detector(read_image(files[number]))
            for left, top, right, bottom in found.xyxy.tolist():
                box_xywh = [left, top, right - left, bottom - top]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 1,
                        "bbox": box_xywh,
                        "area": box_xywh[2] * box_xywh[3],
                        "iscrowd": 0,
                        "keypoints": [0] * 3 * len(COCO_KEYPOINT_NAMES),
                        "num_keypoints": 0,
                    }
                )
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO_KEYPOINT_NAMES)}]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    return AnnotatedSet(folder / "annotations.json", truth, files)


def test_groups_are_the_parts_of_the_network(float_model: FloatModel, groups: list[LayerGroup]) -> None:
    assert [group.name for group in groups] == [
        "stem", "stages.0", "stages.1", "stages.2", "stages.3", "context", "laterals", "smooth", "heads",
    ]  # fmt: skip
    assert set().union(*(group.nodes for group in groups)) == place(float_model.proto.graph).int8
    by_name = {group.name: group.nodes for group in groups}
    assert by_name["stem"] == {"stem.0.0.Conv", "stem.1.0.Conv"}
    # What gives the group's inputs stays in float with it, so that it reads exact values.
    assert by_name["stages.2"] == {
        "stages.1.0.Add", "stages.2.0.downsample.0.Conv", "stages.2.0.conv1.Conv", "stages.2.0.conv2.Conv",
        "stages.2.0.Add",
    }  # fmt: skip
    assert {"Add_3", "heads.trunk.0.Conv", "laterals.0.0.Conv", "stages.0.0.Add"} == by_name["heads"]


def test_groups_of_tensorrt_share_nothing(float_model: FloatModel) -> None:
    graph = float_model.proto.graph
    int8 = place(graph, "tensorrt").int8
    groups = layer_groups(graph, int8, results_quantised=False)
    assert sorted(name for group in groups for name in group.nodes) == sorted(int8)
    assert 6 <= len(groups) <= 16


def test_a_deep_network_has_no_more_groups_than_can_be_measured() -> None:
    graph = chain([f"body.{i}.{j}.conv" for i in range(9) for j in range(9)] + ["last"])
    groups = layer_groups(graph, {node.name for node in graph.node}, results_quantised=False)
    assert [group.name for group in groups] == [*(f"body.{i}" for i in range(9)), "last"]
    assert {len(group.nodes) for group in groups} == {9, 1}
    assert layer_groups(chain([""]), {"Conv"})[0].name == "other"


def test_a_model_without_int8_has_no_groups(float_model: FloatModel) -> None:
    with pytest.raises(CalibrationError, match="no operator of the model would run in INT8"):
        layer_groups(float_model.proto.graph, ())


def chain(layers: Sequence[str]) -> onnx.GraphProto:
    nodes = [
        onnx.helper.make_node("Conv", [f"t{index}", "w"], [f"t{index + 1}"], name=f"{layer}.Conv".removeprefix("."))
        for index, layer in enumerate(layers)
    ]
    return onnx.helper.make_graph(nodes, "chain", [], [])


def test_multiply_accumulates(float_model: FloatModel) -> None:
    counts = multiply_accumulates(float_model.proto)
    weights = {tensor.name: tensor.dims for tensor in float_model.proto.graph.initializer}
    out_channels, in_channels, height, width = weights["stem.0.0.weight"]
    assert counts["stem.0.0.Conv"] == out_channels * in_channels * height * width * 32 * 32  # a frame of 64x64
    assert counts["context.project.Conv"] == np.prod(weights["context.project.weight"])


@pytest.mark.parametrize(("tensor", "group"), [(INSIDE, "stages.2"), (BETWEEN, "context")])
def test_a_damaged_layer_is_found_first(
    tensor: str,
    group: str,
    float_model: FloatModel,
    quantiser: Quantiser,
    groups: list[LayerGroup],
    frames: list[np.ndarray],
) -> None:
    found = sensitivity(float_model.proto, quantiser.damaged(tensor), groups, frames=frames)
    assert found.by_damage[0].group.name == group
    first = found.by_damage[0]
    assert first.head_error < 0.5 * found.head_error
    assert first.error_removed == pytest.approx(found.head_error - first.head_error)
    whole = sensitivity(float_model.proto, quantiser, groups[:1], frames=frames)
    assert whole.head_error < 0.5 * found.head_error


def test_without_annotations_and_without_times(
    float_model: FloatModel, quantiser: Quantiser, groups: list[LayerGroup], frames: list[np.ndarray]
) -> None:
    notes: list[str] = []
    found = sensitivity(float_model.proto, quantiser, groups[:3], frames=frames, note=notes.append)
    assert notes == [f"leaving group {i} of 3 in float: {group.name}" for i, group in enumerate(groups[:3], 1)]
    assert found.accuracy is found.ap_drop is found.latency_ms is None
    assert {(entry.ap_gain, entry.cost_ms) for entry in found.groups} == {(None, None)}
    table = found.to_text().splitlines()
    assert table[0].split("  ")[0] == "left in float" and "AP" not in found.to_text() and "ms" not in table[0]
    assert [row.split()[0] for row in table[1:]] == ["nothing", "stem", "stages.0", "stages.1"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_everything_in_float_is_exact(float_model: FloatModel, quantiser: Quantiser, frames: list[np.ndarray]) -> None:
    everything = LayerGroup("all", place(float_model.proto.graph).int8)
    found = sensitivity(float_model.proto, quantiser, [everything], frames=frames, latency=latency_here)
    (entry,) = found.groups
    assert entry.head_error < 1e-6 < found.head_error
    assert entry.mac_share == pytest.approx(1.0, abs=0.1)  # the output convolution is in float anyway
    assert entry.cost_ms is not None and found.latency_ms is not None
    assert set(found.latency_ms) == {"fp32", "int8"} and min(found.latency_ms.values()) > 0


def entry(
    name: str, gain: float | None, *, cost: float | None = 1.0, error: float = 0.0, share: float = 0.1
) -> GroupSensitivity:
    return GroupSensitivity(LayerGroup(name, frozenset({name})), {}, gain, 0.1, error, cost, share)


def sensitivity_of(*entries: GroupSensitivity, int8: float = 0.48) -> Sensitivity:
    macs = {each.group.name: round(100 * each.mac_share) for each in entries}
    rest = {"rest": 100 - sum(macs.values())}
    accuracy = {"fp32": {"bbox": 0.5}, "int8": {"bbox": int8}}
    return Sensitivity(entries, accuracy, 0.2, {"fp32": 20.0, "int8": 10.0}, {**macs, **rest}, noise_ap=0.001)


def test_the_order_is_of_damage_per_millisecond() -> None:
    found = sensitivity_of(
        entry("large", 0.010, cost=5.0),
        entry("cheap", 0.008, cost=1.0),
        entry("free", 0.002, cost=-0.3),  # a time below zero is no reason to divide by it
        entry("noise", 0.0009, cost=0.1, error=0.01),
        entry("worse", -0.01, cost=0.1, error=0.02),
    )
    assert [each.group.name for each in found.by_damage] == ["free", "cheap", "large", "worse", "noise"]


def test_without_times_the_order_is_of_damage_per_multiply_accumulate() -> None:
    found = sensitivity_of(entry("large", 0.01, cost=None, share=0.5), entry("small", 0.008, cost=None, share=0.1))
    assert [each.group.name for each in found.by_damage] == ["small", "large"]


class FakeEvaluation:
    """Models are lists of the nodes that are in float; each node brings some AP back."""

    def __init__(self, gains: Mapping[str, float], *, int8: float = 0.48) -> None:
        self._gains, self._int8 = gains, int8
        self.asked: list[list[str]] = []

    def quantise_except(self, float_nodes: Collection[str]) -> onnx.ModelProto:
        return onnx.ModelProto(doc_string=" ".join(sorted(float_nodes)))

    def __call__(self, model: onnx.ModelProto) -> dict[str, float]:
        self.asked.append(model.doc_string.split())
        return {"bbox": self._int8 + sum(self._gains[name] for name in self.asked[-1])}

    def choose(self, found: Sensitivity, *, max_ap_drop: float = 0.005) -> budget.Choice:
        int8 = self.quantise_except(())
        return choose_float_groups(found, self.quantise_except, int8, evaluate=self, max_ap_drop=max_ap_drop)


def test_no_more_groups_than_it_takes() -> None:
    found = sensitivity_of(entry("a", 0.012), entry("b", 0.009), entry("c", 0.006))
    fake = FakeEvaluation({"a": 0.012, "b": 0.009, "c": 0.006})
    choice = fake.choose(found)
    assert fake.asked == [["a"], ["a", "b"]]
    assert choice.float_groups == ("a", "b") and choice.float_nodes == {"a", "b"}
    assert choice.model.doc_string == "a b"
    assert choice.ap_drop == pytest.approx(0.02 - 0.021)


def test_what_brings_nothing_stays_in_int8() -> None:
    found = sensitivity_of(entry("a", 0.012), entry("b", 0.009), entry("c", 0.006))
    fake = FakeEvaluation({"a": -0.001, "b": 0.009, "c": 0.008})
    choice = fake.choose(found)
    assert fake.asked == [["a"], ["b"], ["b", "c"]]
    assert [(step.group, step.kept) for step in choice.steps] == [("a", False), ("b", True), ("c", True)]
    assert choice.float_groups == ("b", "c")


def test_a_budget_that_holds_changes_nothing() -> None:
    fake = FakeEvaluation({"a": 0.01}, int8=0.496)
    choice = fake.choose(sensitivity_of(entry("a", 0.01), int8=0.496))
    assert choice.steps == () and fake.asked == []
    assert choice.model.doc_string == ""


def test_never_is_most_of_the_network_in_float() -> None:
    shares = {"a": 0.3, "b": 0.3, "c": 0.15}
    found = sensitivity_of(*(entry(name, 0.009, share=share) for name, share in shares.items()))
    fake = FakeEvaluation(dict.fromkeys(shares, 0.001))
    choice = fake.choose(found)
    assert fake.asked == [["a"], ["a", "c"]]
    assert choice.ap_drop == pytest.approx(0.018) and not choice.reached


def test_the_number_of_evaluations_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MAX_STEPS", 2)
    names = [f"g{index}" for index in range(5)]
    fake = FakeEvaluation(dict.fromkeys(names, 0.001))
    assert len(fake.choose(sensitivity_of(*(entry(name, 0.002, share=0.05) for name in names))).steps) == 2


def test_the_worse_of_both_kinds_counts() -> None:
    assert ap_drop({"bbox": 0.5, "keypoints": 0.4}, {"bbox": 0.51, "keypoints": 0.39}) == pytest.approx(0.01)


def test_photographs_are_divided_by_the_seed(own_findings: AnnotatedSet) -> None:
    one, other = divide(own_findings, seed=0)
    assert len(one.files) == len(other.files) == 4
    assert {**one.files, **other.files} == own_findings.files
    assert divide(own_findings, seed=0) == (one, other) != divide(own_findings, seed=1)
    few = replace(own_findings, files=dict(list(own_findings.files.items())[:3]))
    with pytest.raises(CalibrationError, match="3 photographs are too few to choose"):
        divide(few, seed=0)


def held(
    quantiser: Quantiser, groups: list[LayerGroup], annotated: AnnotatedSet, frames: list[np.ndarray], *, most: float
) -> Budget:
    return hold_budget(
        quantiser.model, quantiser, groups, annotated, max_ap_drop=most, frames=frames, latency=fake_latency
    )


def fake_latency(models: Sequence[onnx.ModelProto]) -> list[float]:
    """All networks take the same time, so that damage alone counts."""
    return [1.0] * len(models)


def test_a_damaged_layer_goes_back_to_float(
    quantiser: Quantiser, groups: list[LayerGroup], own_findings: AnnotatedSet, frames: list[np.ndarray]
) -> None:
    sound = held(quantiser, groups, own_findings, frames, most=0.99)
    assert sound.holds and sound.choice is None and sound.float_nodes == frozenset()
    assert sound.model == quantiser(()) and sound.evaluation is own_findings
    assert sound.sentences()[1:] == [
        f"INT8 loses {sound.ap_drop:.4f} AP: it holds, and nothing had to go back to float."
    ]
    damaged = quantiser.damaged(INSIDE)
    result = held(damaged, groups, own_findings, frames, most=sound.ap_drop + 0.05)
    assert result.choice is not None and result.choosing is not None
    assert result.choice.float_groups[0] == "stages.2"
    assert result.choosing.files.keys().isdisjoint(result.evaluation.files)
    assert result.accuracy["final"]["bbox"] > result.accuracy["int8"]["bbox"]
    assert result.model == damaged(result.float_nodes)
    assert "Back in float: stages.2" in "\n".join(result.sentences())
    assert result.holds == ("The budget holds." in result.sentences())
    json.dumps(result.to_dict(), allow_nan=False)


def test_an_impossible_budget_says_what_else_to_do(
    quantiser: Quantiser, groups: list[LayerGroup], own_findings: AnnotatedSet, frames: list[np.ndarray]
) -> None:
    heads = groups[-1:]  # which are not where the damage is
    result = held(quantiser.damaged(INSIDE), heads, own_findings, frames, most=0.0)
    assert not result.holds and result.to_dict()["holds"] is False
    *_, verdict, chance = result.sentences()
    assert verdict.startswith("THE BUDGET DOES NOT HOLD with as much in float") and "centeredge train" in verdict
    assert chance.startswith("4 photographs cannot tell a loss below 0.0150 AP from chance")


def test_a_budget_needs_annotations_and_sense(quantiser: Quantiser, own_findings: AnnotatedSet) -> None:
    with pytest.raises(ConfigError, match="--max-ap-drop needs annotated photographs"):
        hold_budget(quantiser.model, quantiser, [], None, max_ap_drop=0.005, frames=[])
    with pytest.raises(ConfigError, match=r"--max-ap-drop 5\.0 is no loss of AP"):
        hold_budget(quantiser.model, quantiser, [], own_findings, max_ap_drop=5.0, frames=[])
