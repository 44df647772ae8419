"""`load_teacher`: every family, and a way out of every mistake."""

import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dfqlab.errors import CheckpointError, ConfigurationError, TeacherError
from dfqlab.teachers import load_teacher
from dfqlab.teachers.cifar_networks import CIFAR10_CLASSES, resnet20
from dfqlab.teachers.digits_networks import DIGITS_NETWORKS
from dfqlab.teachers.loading import _as_with_weights
from dfqlab.teachers.names import DEFAULT_TEACHER, DIGITS_NAMES, TEACHERS

SMALL_TORCHVISION = "shufflenet_v2_x0_5"
SMALL_TIMM = "mobilenetv3_small_050"


def _saved(module: nn.Module, path: Path) -> Path:
    # Weights that give BatchNorm something to remember, the same on every run.
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.rand(t.shape, generator=generator) if t.is_floating_point() else t
        for key, t in module.state_dict().items()
    }
    save_file(state, path)
    return path


@pytest.fixture
def resnet20_file(tmp_path: Path) -> Path:
    return _saved(resnet20(), tmp_path / "resnet20.safetensors")


def test_names_are_read_without_torch() -> None:
    code = "import sys; from dfqlab.teachers import names; print('torch' in sys.modules, len(names.TEACHERS))"
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out.split() == ["False", str(len(TEACHERS))]


def test_names_for_help_are_the_networks_there_are() -> None:
    assert tuple(DIGITS_NETWORKS) == DIGITS_NAMES
    assert DEFAULT_TEACHER in TEACHERS


@pytest.mark.parametrize("network", DIGITS_NAMES)
def test_the_embedded_teachers_need_nothing(network: str) -> None:
    teacher = load_teacher(f"digits/{network}")
    assert teacher.input.size == (1, 16, 16)
    assert teacher.classes == tuple("0123456789")
    assert teacher.batch_norms


def test_a_checkpoint_takes_the_place_of_the_embedded_weights(tmp_path: Path) -> None:
    path = _saved(DIGITS_NETWORKS["vgg"](), tmp_path / "vgg.safetensors")
    teacher = load_teacher("digits/vgg", checkpoint=path)
    weight = next(iter(teacher.module.parameters()))
    assert float(weight.min()) >= 0  # as in the file, and in no trained network


def test_a_cifar10_teacher_is_filled_with_its_checkpoint(resnet20_file: Path) -> None:
    teacher = load_teacher("cifar10/resnet20", checkpoint=resnet20_file)
    assert teacher.name == "cifar10/resnet20"
    assert teacher.input.size == (3, 32, 32)
    assert teacher.classes == CIFAR10_CLASSES
    assert len(teacher.batch_norms) == 19
    again = load_teacher("cifar10/resnet20", checkpoint=str(resnet20_file))
    assert again.fingerprint == teacher.fingerprint


def test_a_torch_file_of_tensors_serves_too(tmp_path: Path, resnet20_file: Path) -> None:
    module = resnet20()
    torch.save(module.state_dict(), tmp_path / "resnet20.pt")
    teacher = load_teacher("cifar10/resnet20", checkpoint=tmp_path / "resnet20.pt")
    assert torch.equal(teacher.module.get_parameter("linear.weight"), module.get_parameter("linear.weight"))


def test_loading_leaves_the_global_generator_alone(resnet20_file: Path) -> None:
    before = torch.get_rng_state()
    load_teacher("cifar10/resnet20", checkpoint=resnet20_file)
    assert torch.equal(torch.get_rng_state(), before)


def test_leaves_reach_the_teacher(resnet20_file: Path) -> None:
    assert load_teacher("cifar10/resnet20", checkpoint=resnet20_file, leaves=["layer1.0"]).leaves == ("layer1.0",)
    with pytest.raises(TeacherError, match=r"no submodule 'layer1.9'; did you mean 'layer1\.."):
        load_teacher("cifar10/resnet20", checkpoint=resnet20_file, leaves=["layer1.9"])


def test_torchvision_takes_size_mean_std_and_names_of_its_default_weights(tmp_path: Path) -> None:
    from torchvision import models

    path = _saved(models.get_model(SMALL_TORCHVISION), tmp_path / "weights.safetensors")
    teacher = load_teacher(f"torchvision/{SMALL_TORCHVISION}", checkpoint=path)
    assert teacher.input.size == (3, 224, 224)
    assert teacher.input.mean == (0.485, 0.456, 0.406)
    assert teacher.input.std == (0.229, 0.224, 0.225)
    assert len(teacher.classes) == 1000
    assert teacher.classes[:2] == ("tench", "goldfish")


def test_torchvision_downloads_what_a_checkpoint_would_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    path = _saved(models.get_model(SMALL_TORCHVISION), tmp_path / "weights.safetensors")
    teacher = load_teacher(f"torchvision/{SMALL_TORCHVISION}", checkpoint=path)
    state = teacher.module.state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    downloaded = load_teacher(f"torchvision/{SMALL_TORCHVISION}")
    assert downloaded.fingerprint == teacher.fingerprint
    assert downloaded.classes == teacher.classes


@pytest.mark.parametrize("family", ["torchvision", "timm"])
def test_a_checkpoint_may_have_its_own_number_of_classes(tmp_path: Path, family: str) -> None:
    import timm
    from torchvision import models

    name = {"torchvision": SMALL_TORCHVISION, "timm": SMALL_TIMM}[family]
    build = {"torchvision": models.get_model, "timm": timm.create_model}[family]
    path = _saved(build(name, num_classes=7), tmp_path / "seven.safetensors")
    assert load_teacher(f"{family}/{name}", checkpoint=path).classes == tuple("0123456")


def test_torchvision_inceptions_renormalise_with_a_checkpoint_too(tmp_path: Path) -> None:
    from torchvision import models

    path = _saved(models.get_model("googlenet", init_weights=False), tmp_path / "googlenet.safetensors")
    teacher = load_teacher("torchvision/googlenet", checkpoint=path)
    assert teacher.module.__dict__["transform_input"] is True
    assert not [layer for layer in teacher.batch_norms if layer.startswith("aux")]


def test_torchvision_transformers_have_the_positions_of_their_default_weights() -> None:
    from torchvision import models

    weights = models.get_model_weights("vit_h_14").DEFAULT  # too large to build here
    assert (
        _as_with_weights("vit_h_14", weights)
        == {"image_size": weights.transforms().crop_size[0]}
        == {"image_size": 518}
    )


def test_timm_takes_its_data_configuration(tmp_path: Path) -> None:
    import timm

    path = _saved(timm.create_model(SMALL_TIMM), tmp_path / "weights.safetensors")
    teacher = load_teacher(f"timm/{SMALL_TIMM}", checkpoint=path)
    expected = timm.get_pretrained_cfg(SMALL_TIMM)
    assert expected is not None
    assert teacher.input.size == expected.input_size
    assert teacher.input.mean == expected.mean
    assert teacher.input.std == expected.std
    assert teacher.classes[:2] == ("tench", "goldfish")
    assert teacher.batch_norms


def test_timm_downloads_what_a_checkpoint_would_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    path = _saved(timm.create_model(SMALL_TIMM), tmp_path / "weights.safetensors")
    teacher = load_teacher(f"timm/{SMALL_TIMM}", checkpoint=path)
    state = teacher.module.state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: state)
    assert load_teacher(f"timm/{SMALL_TIMM}").fingerprint == teacher.fingerprint


@pytest.mark.parametrize(
    ("name", "download"),
    [
        (f"torchvision/{SMALL_TORCHVISION}", "torchvision.models._api.load_state_dict_from_url"),
        (f"timm/{SMALL_TIMM}", "timm.models._builder.load_state_dict_from_hf"),
    ],
)
def test_without_a_network_it_asks_for_a_checkpoint(monkeypatch: pytest.MonkeyPatch, name: str, download: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(download, fail)
    with pytest.raises(TeacherError, match=rf"'{name}'.*no route to host.*pass checkpoint=PATH"):
        load_teacher(name)


def test_a_timm_network_without_a_classifier_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    headless = timm.create_model(SMALL_TIMM, num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: headless)
    with pytest.raises(TeacherError, match="has no classifier"):
        load_teacher(f"timm/{SMALL_TIMM}")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("digits/mobilnet", "did you mean 'digits/mobilenet'"),
        ("cifar10/resnet18", "did you mean .*'cifar10/resnet20'"),
        ("torchvision/resnt18", "did you mean .*'torchvision/resnet18'"),
        ("timm/mobilenetv3_smal_050", "did you mean .*'timm/mobilenetv3_small_050'"),
        ("digit/vgg", "did you mean 'digits/vgg'"),
        ("resnet20", "FAMILY/NETWORK.*did you mean 'cifar10/resnet20'"),
        ("torchvision/", "FAMILY/NETWORK"),
        ("", "known: cifar10/mobilenet_v2"),
        ("torchvision/fcn_resnet50", "no teacher"),  # it segments images
    ],
)
def test_an_unknown_name_gets_the_near_ones(name: str, answer: str) -> None:
    with pytest.raises(ConfigurationError, match=answer):
        load_teacher(name)


def test_a_cifar10_teacher_asks_for_its_checkpoint() -> None:
    with pytest.raises(ConfigurationError, match="pass checkpoint=PATH"):
        load_teacher("cifar10/resnet20")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigurationError, match=r"timm; pip install \"dfqlab\[zoo\]\""):
        load_teacher(f"timm/{SMALL_TIMM}")


def test_a_checkpoint_of_another_network_is_refused_with_the_first_differences(
    tmp_path: Path, resnet20_file: Path
) -> None:
    with pytest.raises(
        TeacherError, match=r"missing 0\.weight, .* and \d+ more; unexpected bn1\.bias, .* and \d+ more"
    ):
        load_teacher("digits/vgg", checkpoint=resnet20_file)
    state = resnet20().state_dict()
    state["linear.weight"] = torch.zeros(7, 64)
    save_file(state, tmp_path / "seven.safetensors")
    with pytest.raises(TeacherError, match=r"of another shape linear\.weight \(7, 64\) instead of \(10, 64\)"):
        load_teacher("cifar10/resnet20", checkpoint=tmp_path / "seven.safetensors")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = resnet20().state_dict()
    state["bn1.running_var"][3] = torch.inf
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(TeacherError, match=r"not finite, in bn1\.running_var"):
        load_teacher("cifar10/resnet20", checkpoint=tmp_path / "broken.safetensors")


def test_a_state_dict_from_before_batches_were_counted_loads(tmp_path: Path) -> None:
    state = {k: t for k, t in resnet20().state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "old.safetensors")
    load_teacher("cifar10/resnet20", checkpoint=tmp_path / "old.safetensors")


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file: .*gone\.safetensors"):
        load_teacher("cifar10/resnet20", checkpoint=tmp_path / "gone.safetensors")


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_named(resnet20_file: Path, device: str) -> None:
    with pytest.raises(ConfigurationError, match=f"no device '{device}' here.*device='cpu'"):
        load_teacher("cifar10/resnet20", checkpoint=resnet20_file, device=device)
