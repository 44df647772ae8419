"""Sources of images: what they give, in which order, and what they refuse."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfqlab import checkpoints
from dfqlab.errors import CheckpointError, DataError, OutputError
from dfqlab.images import Batch, ImageSource, Noise, StoredImages, SyntheticSet, as_source
from dfqlab.teachers import InputSpec

SPEC = InputSpec((3, 4, 5), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def rand(count: int = 7, seed: int = 0) -> Tensor:
    return torch.rand(count, *SPEC.size, generator=torch.Generator().manual_seed(seed))


def all_of(batches: Iterator[Batch]) -> Tensor:
    return torch.cat([batch.images for batch in batches])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def synthetic(**changes: object) -> SyntheticSet:
    facts = {
        "recipe": "zeroq",
        "seed": 3,
        "settings": {"steps": 10, "learning_rate": 0.5},
        "plan": {"batch_size": 7, "dtype": "float32", "compiled": False},
        "teachers": ("abc", "def"),
        "partial": True,
        **changes,
    }
    return SyntheticSet(rand(), torch.arange(7), **facts)  # type: ignore[arg-type]


def test_a_synthetic_set_comes_back_whole(tmp_path: Path) -> None:
    made = synthetic()
    made.save(tmp_path / "images.safetensors")
    found = SyntheticSet.load(tmp_path / "images.safetensors")
    assert torch.equal(found.images, made.images)
    assert found.labels is not None
    assert torch.equal(found.labels, torch.arange(7))
    for name in ("recipe", "seed", "settings", "plan", "teachers", "partial"):
        assert getattr(found, name) == getattr(made, name)
    assert len(found) == 7


def test_a_set_without_labels_comes_back_without(tmp_path: Path) -> None:
    SyntheticSet(rand()).save(tmp_path / "images.safetensors")
    assert SyntheticSet.load(tmp_path / "images.safetensors").labels is None


def test_the_same_set_gives_the_same_bytes_and_any_difference_others(tmp_path: Path) -> None:
    def content(images: SyntheticSet) -> bytes:
        images.save(tmp_path / "images.safetensors")
        return (tmp_path / "images.safetensors").read_bytes()

    reference = content(synthetic())
    assert content(synthetic()) == reference
    assert content(SyntheticSet.load(tmp_path / "images.safetensors")) == reference
    assert content(synthetic(settings={"learning_rate": 0.5, "steps": 10})) == reference
    for change in ({"seed": 4}, {"recipe": "dsg"}, {"partial": False}, {"teachers": ("abc",)}):
        assert content(synthetic(**change)) != reference


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    checkpoints.save(path, {"images": rand()}, kind="compressed model", facts={})
    with pytest.raises(CheckpointError, match="holds a compressed model; expected a synthetic set"):
        SyntheticSet.load(path)


@pytest.mark.parametrize(
    ("tensors", "facts"),
    [
        ({"pictures": rand()}, {"teachers": []}),
        ({"images": rand()}, {}),
        ({"images": rand()}, {"teachers": 3}),
        ({"images": rand()}, {"teachers": [], "mood": "good"}),
    ],
)
def test_a_set_with_something_missing_or_unknown_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], facts: dict[str, object]
) -> None:
    checkpoints.save(tmp_path / "a.safetensors", tensors, kind="synthetic set", facts=facts)
    with pytest.raises(CheckpointError, match="is not a complete synthetic set"):
        SyntheticSet.load(tmp_path / "a.safetensors")


def test_a_set_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        synthetic().save(tmp_path / "file" / "images.safetensors")


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_batches_go_once_over_the_images_in_their_order(size: int) -> None:
    labels = torch.arange(7)
    batches = list(StoredImages(rand(), labels).batches(size))
    assert [len(b.images) for b in batches] == [min(size, 7 - start) for start in range(0, 7, size)]
    assert torch.equal(torch.cat([b.images for b in batches]), rand())
    assert torch.equal(torch.cat([b.labels for b in batches if b.labels is not None]), labels)
    assert all(b.weights is None for b in batches)


def test_a_generator_shuffles_images_and_labels_alike() -> None:
    source = StoredImages(rand(), torch.arange(7))
    batches = list(source.batches(3, seeded(0)))
    images = torch.cat([b.images for b in batches])
    labels = torch.cat([b.labels for b in batches if b.labels is not None])
    assert labels.tolist() != list(range(7))
    assert sorted(labels.tolist()) == list(range(7))
    assert torch.equal(images, rand()[labels])
    assert torch.equal(all_of(source.batches(2, seeded(0))), images)
    assert not torch.equal(all_of(source.batches(3, seeded(1))), images)


def test_each_pass_with_one_generator_has_an_order_of_its_own() -> None:
    source, generator = StoredImages(rand()), seeded(0)
    assert not torch.equal(all_of(source.batches(7, generator)), all_of(source.batches(7, generator)))


@pytest.mark.parametrize("source", [StoredImages(rand(0)), SyntheticSet(rand(0)), Noise(SPEC, 0)])
def test_no_images_are_no_batches(source: ImageSource) -> None:
    assert list(source.batches(4)) == []
    assert list(source.batches(4, seeded(0))) == []


def test_noise_is_standard_in_the_space_that_the_network_sees() -> None:
    noise = all_of(Noise(SPEC, 2000).batches(100))
    assert noise.dtype == torch.float32
    x = SPEC.normalize(noise).double()
    assert x.mean((0, 2, 3)).abs().max() < 4 / 200  # four deviations of the mean of 40,000
    assert (x.std((0, 2, 3)) - 1).abs().max() < 4 / 280
    assert noise.min() < 0
    assert noise.max() > 1


def test_noise_is_the_same_on_every_pass_and_another_with_another_seed() -> None:
    source = Noise(SPEC, 10, seed=1)
    assert len(source) == 10
    first = all_of(source.batches(4))
    assert torch.equal(all_of(source.batches(3)), first)
    assert torch.equal(all_of(Noise(SPEC, 10, seed=1).batches(10)), first)
    assert not torch.equal(all_of(Noise(SPEC, 10, seed=2).batches(10)), first)


def test_much_noise_is_drawn_a_batch_at_a_time() -> None:
    batches = Noise(InputSpec((3, 64, 64), (0.5,) * 3, (0.5,) * 3), 10**9).batches(2)
    assert next(batches).images.shape == (2, 3, 64, 64)  # 49 TB, were it all of them


def test_noise_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    list(Noise(SPEC, 10).batches(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_clipped_noise_is_the_raw_noise_cut_to_the_valid_range() -> None:
    raw, clipped = all_of(Noise(SPEC, 50).batches(50)), all_of(Noise(SPEC, 50, clipped=True).batches(50))
    assert torch.equal(clipped, raw.clamp(0, 1))
    assert (clipped.min(), clipped.max()) == (0, 1)


def test_a_users_tensor_becomes_a_source() -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        source = as_source(rand().to(dtype), SPEC)
        images = all_of(source.batches(3))
        assert images.dtype == torch.float32
        assert torch.equal(images, rand().to(dtype).float())
    as_source(torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, *SPEC.size), SPEC)  # both ends are valid


def test_a_source_stays_the_source_it_is_and_its_range_its_own_business() -> None:
    class Endless:
        def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
            while True:
                yield Batch(rand(size))

    for source in (synthetic(), Noise(SPEC, 4), StoredImages(rand() * 9 - 4), Endless()):
        assert as_source(source, SPEC) is source


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (rand() * 1.001 + 0.1, r"must lie in 0\.\.1, got 0\.1.*\.\.1\.1.*: give pixels, not normalised values"),
        (rand() - 0.01, r"must lie in 0\.\.1, got -0\.0"),
        (rand().index_fill(0, torch.tensor([2]), torch.nan), "hold NaN or infinity"),
        (rand().index_fill(0, torch.tensor([6]), torch.inf), "hold NaN or infinity"),
        (rand(0), "no images: the tensor is empty"),
        (torch.rand(3, 4, 5), r"must be \(n, 3, 4, 5\), got \(3, 4, 5\)"),
        (torch.rand(2, 1, 4, 5), r"must be \(n, 3, 4, 5\), got \(2, 1, 4, 5\)"),
        (torch.rand(2, 3, 5, 4), r"got \(2, 3, 5, 4\)"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.uint8), r"must be floats in 0\.\.1, got torch.uint8; divide bytes by 255"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.int64), "must be floats"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.complex64), "must be floats"),
    ],
)
def test_a_users_tensor_that_does_not_fit_is_refused(images: Tensor, said: str) -> None:
    with pytest.raises(DataError, match=said):
        as_source(images, SPEC)


@pytest.mark.parametrize("thing", ["images.npz", [rand()], None])
@pytest.mark.traces  # a shape check would catch these before we answer
def test_what_is_no_source_is_named(thing: object) -> None:
    with pytest.raises(DataError, match=f"SyntheticSet or another ImageSource, got {type(thing).__name__}"):
        as_source(thing, SPEC)  # type: ignore[arg-type]
