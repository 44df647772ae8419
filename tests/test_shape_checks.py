"""The shapes in our signatures are checked in ordinary tests, and step aside where torch follows the code."""

import jaxtyping
import pytest
import torch
from beartype import beartype

from dfqlab_kernels import channel_stats


def test_an_argument_that_its_signature_does_not_allow_is_caught() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'x'"):
        channel_stats(torch.ones(2, 3, dtype=torch.int64))


@pytest.mark.traces
def test_marked_tests_compile_our_functions_in_one_graph() -> None:
    torch.compiler.reset()  # others in this process may have used up what dynamo compiles of one function
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    mean, _ = torch.compile(channel_stats, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))


@pytest.mark.traces
def test_marked_tests_let_fx_into_our_functions() -> None:
    traced = torch.fx.symbolic_trace(_annotated)
    assert [node.target for node in traced.graph.nodes][1:-1] == [torch.relu]


@jaxtyping.jaxtyped(typechecker=beartype)
def _annotated(x: jaxtyping.Float[torch.Tensor, "n c"]) -> jaxtyping.Float[torch.Tensor, "n c"]:
    return torch.relu(x)
