"""Alternatives run in turns, and only the rounds after the warm-up count."""

from __future__ import annotations

from sdk.timing import interleaved_ms, medians_ms


def test_functions_run_in_turns() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    times = interleaved_ms(functions, rounds=3, warm_up=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert all(ms >= 0 for values in times.values() for ms in values)


def test_medians_are_of_each_function() -> None:
    assert set(medians_ms({"a": lambda: None}, rounds=1, warm_up=0)) == {"a"}
