"""What a results file is named after."""

import pytest
import torch

from dfqlab_kernels.bench.machine import DEVICE_VARIABLE, this_machine


@pytest.mark.parametrize(
    ("capabilities", "said"), [({"avx512_bf16": True}, "AVX512 and bfloat16"), ({"avx512_bf16": False}, "AVX512")]
)
def test_processors_of_one_name_that_compute_otherwise_are_two_machines(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], said: str
) -> None:
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    machine = this_machine()
    assert machine.name.endswith(f" ({said}), 2 threads")
    assert machine.slug.endswith("-2-threads")
    assert said.lower().replace(" ", "-") in machine.slug
