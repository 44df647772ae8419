"""The command line as a user meets it: results, refusals, exit codes, a stop that keeps what there is."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dfqlab
from dfqlab.cli import main
from dfqlab.images import SyntheticSet
from dfqlab.teachers.cifar_networks import resnet20

BRIEF = ["quantize", "--teacher", "digits/vgg", "--count", "8", "--steps", "3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A brief run of the main job."""
    out = tmp_path_factory.mktemp("runs") / "vgg"
    assert main([*BRIEF, "--out", str(out)]) == 0
    return out


def test_quantize_leaves_images_model_onnx_and_report(finished: Path) -> None:
    assert sorted(f.name for f in finished.iterdir() if f.name != ".lock") == [
        "images.safetensors", "model.onnx", "model.safetensors", "report.html", "report.json",
    ]  # fmt: skip
    report = json.loads((finished / "report.json").read_text())
    assert [row["source"] for row in report["rows"]] == ["noise", "clipped noise", "zeroq", "real"]
    assert report["certificate"]["holds"]
    assert report["command"].startswith("dfqlab quantize --teacher digits/vgg --count 8 --steps 3")


def test_the_reported_accuracy_is_the_one_that_evaluate_measures(finished: Path, capsys) -> None:
    assert main(["evaluate", "--model", str(finished), "--eval", "digits"]) == 0
    of_directory = capsys.readouterr().out
    assert main(["evaluate", "--model", str(finished / "model.onnx"), "--eval", "digits"]) == 0
    of_file = capsys.readouterr().out
    report = json.loads((finished / "report.json").read_text())
    accuracy = next(row["accuracy"]["value"] for row in report["rows"] if row["source"] == "zeroq")
    assert f"{100 * accuracy:.1f} %" in of_directory
    assert f"{100 * accuracy:.1f} %" in of_file


def test_another_run_is_not_overwritten_unless_asked(finished: Path, capsys) -> None:
    before = (finished / "report.json").read_bytes()
    assert main([*BRIEF, "--out", str(finished)]) == 2
    assert "another run" in capsys.readouterr().err
    assert (finished / "report.json").read_bytes() == before


def test_export_writes_the_same_file_again_and_refuses_to_replace_it(finished: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "again.onnx"
    assert main(["export", "--model", str(finished), "--out", str(out)]) == 0
    assert out.read_bytes() == (finished / "model.onnx").read_bytes()
    assert main(["export", "--model", str(finished), "--out", str(out)]) == 2
    assert main(["export", "--model", str(finished), "--out", str(out), "--overwrite"]) == 0


def test_a_small_export_is_smaller(finished: Path, tmp_path: Path) -> None:
    assert main(["export", "--model", str(finished), "--out", str(tmp_path / "small.onnx"), "--small"]) == 0
    assert (tmp_path / "small.onnx").stat().st_size < (finished / "model.onnx").stat().st_size


def test_images_made_before_are_used_as_they_are(tmp_path: Path) -> None:
    assert (
        main(["synthesize", "--teacher", "digits/vgg", "--count", "8", "--steps", "3", "--out", str(tmp_path / "i")])
        == 0
    )
    images = tmp_path / "i" / "images.safetensors"
    assert main([*BRIEF, "--images", str(images), "--out", str(tmp_path / "m")]) == 0
    assert (tmp_path / "m" / "images.safetensors").read_bytes() == images.read_bytes()


def test_an_opaque_leaf_can_be_named_on_the_command_line(tmp_path: Path) -> None:
    assert main([*BRIEF, "--leaves", '["16"]', "--out", str(tmp_path / "m")]) == 0
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    assert report["certificate"]["holds"]
    assert ("16", "float") in [(row["name"], row["bits"]) for row in report["placement"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "1"], "bits are an integer from 2 to 8"),
        (["--activations", "9"], "bits are an integer from 2 to 8"),
        (["--weights", "0"], "bits are an integer from 2 to 8"),
        (["--recipe", "zerq"], "did you mean 'zeroq'?"),
        (["--teacher", "digits/vg"], "did you mean 'digits/vgg'"),
        (["--teacher", "torchvison/resnet18"], "did you mean"),
        (["--teacher", "cifar10/resnet20"], "checkpoint=PATH"),
        (["--eval", "nowhere.npz"], "nowhere.npz"),
        (["--count", "0"], "count=0"),
        (["--real", "digits", "--eval", "digits"], "must not judge it"),
        (["--leaves", "[hed]"], "has no submodule 'hed'"),
        (["--layers", "3x=4"], "nothing is called '3x'"),
        (["--layers", "3=4/x"], "is not NAME=WEIGHTS/ACTIVATIONS"),
        (["--layers", "3=1"], "bits are an integer from 2 to 8"),
        (["--ends", "9"], "ends=9: bits are an integer from 2 to 8"),
        (["--calibration", "percentile", "--percentile", "50"], "expected more than 50"),
        (["--mean_bits", "1.5"], "a weight takes from 2 to 8 bits"),
        (["--mean_bits", "3", "--ends", "8", "--layers", "3=8,7=8,11=8"], "the smallest possible here is"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys
) -> None:
    assert main([*BRIEF, *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [["--weights", "4.5"], ["--calibration", "magic"], ["--unknown", "1"]])
def test_what_no_option_takes_is_refused_by_the_parser(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*BRIEF, *arguments])
    assert stop.value.code == 2
    assert arguments[0].removeprefix("--") in capsys.readouterr().err


def test_data_of_another_size_or_with_other_classes_is_refused(tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "big.npz", images=np.zeros((4, 32, 32, 3), np.uint8), labels=np.arange(4))
    np.savez(tmp_path / "many.npz", images=np.zeros((12, 16, 16, 1), np.uint8), labels=np.arange(12))
    assert main([*BRIEF, "--eval", str(tmp_path / "big.npz"), "--out", str(tmp_path / "a")]) == 2
    assert "(3, 32, 32)" in capsys.readouterr().err
    assert main([*BRIEF, "--eval", str(tmp_path / "many.npz"), "--out", str(tmp_path / "b")]) == 2
    assert "knows classes 0 to 9" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    started = time.monotonic()
    assert main([*BRIEF, "--steps", "100000", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot write into" in capsys.readouterr().err
    assert time.monotonic() - started < 20


def test_each_axis_of_quantization_is_an_option(tmp_path: Path) -> None:
    out = tmp_path / "everything"
    axes = ["--calibration", "percentile", "--percentile", "99.9", "--equalization", "dfq", "--rounding", "qdrop"]
    widths = ["--iterations", "5", "--mean_bits", "4", "--ends", "7", "--layers", "3=/6"]
    assert main([*BRIEF, *axes, *widths, "--split_channels", "0.02", "--out", str(out)]) == 0
    model = dfqlab.load_model(out)
    assert [row.split for row in model.chains if not row.skipped] == [1, 1, 1, 1]
    bits = {path: layer.bits for path, layer in model.layers.items()}
    assert (bits["0"], bits["16"]) == (7, 7)
    sizes = {path: layer.codes.numel() for path, layer in model.layers.items()}
    assert sum(bits[path] * size for path, size in sizes.items()) <= 4 * sum(sizes.values())
    assert {row.name: row.bits for row in model.table}["3"] == f"{bits['3']} / 6"
    report = json.loads((out / "report.json").read_text())
    assert (report["calibration"], report["equalization"], report["rounding"]) == ("percentile", "dfq", "qdrop")
    assert "equalization: dfq, rounding: qdrop" in (out / "report.html").read_text()
    assert "4 channels were split in two: the model is larger by their weights" in report["warnings"]


def test_the_configuration_that_is_printed_can_be_read_back(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        main([*BRIEF, "--seed", "5", "--print_config"])
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert main(["quantize", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "m")]) == 0
    assert SyntheticSet.load(tmp_path / "m" / "images.safetensors").seed == 5


@pytest.mark.traces
def test_without_real_data_agreement_is_not_called_accuracy(tmp_path: Path, capsys) -> None:
    checkpoint = tmp_path / "resnet20.safetensors"
    network = resnet20()
    save_file(network.state_dict(), checkpoint)
    arguments = ["quantize", "--teacher", "cifar10/resnet20", "--checkpoint", str(checkpoint), "--count", "4"]
    assert main([*arguments, "--steps", "2", "--out", str(tmp_path / "m")]) == 0
    assert "this is not accuracy" in capsys.readouterr().out
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    assert report["teacher_accuracy"] is None
    assert all(row["accuracy"] is None for row in report["rows"])


def test_train_teacher_writes_weights_that_load(tmp_path: Path) -> None:
    out = tmp_path / "vgg.safetensors"
    assert main(["train-teacher", "--teacher", "digits/vgg", "--out", str(out)]) == 0
    assert dfqlab.load_teacher("digits/vgg", checkpoint=out).batch_norms
    assert all(torch.isfinite(t).all() for t in load_file(out).values())
    assert main(["train-teacher", "--teacher", "digits/vgg", "--out", str(out)]) == 2
    assert main(["train-teacher", "--teacher", "cifar10/resnet20", "--out", str(tmp_path / "x")]) == 2


def test_doctor_names_what_is_installed(capsys) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"torch\s+{re.escape(metadata.version('torch'))}", said)
    assert "onnxruntime" in said
    assert re.search(r"openvino\s+\S", said)
    assert re.search(r"kernels\s+(reference|Triton)", said)


def test_ctrl_c_keeps_the_images_made_so_far(tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    command = shutil.which("dfqlab", path=str(Path(sys.executable).parent)) or "dfqlab"
    arguments = [
        command,
        "quantize",
        "--teacher",
        "digits/vgg",
        "--count",
        "8",
        "--steps",
        "1000000",
        "--out",
        str(out),
    ]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(line.startswith("synthesize: ") for line in iter(process.stderr.readline, ""))  # the first step
        process.send_signal(signal.SIGINT)
        said, complained = process.communicate(timeout=60)
    assert process.returncode == 130, complained
    assert "images.safetensors" in said
    images = SyntheticSet.load(out / "images.safetensors")
    assert images.partial
    assert torch.isfinite(images.images).all()
    assert main([*BRIEF, "--images", str(out / "images.safetensors"), "--out", str(tmp_path / "m")]) == 0
    assert "stopped before" in (tmp_path / "m" / "report.html").read_text()


@pytest.mark.traces
def test_resnet20_loses_at_most_half_a_point_at_8_bits(data_dir: Path, tmp_path: Path) -> None:
    cifar10 = data_dir / "cifar10"
    arguments = ["quantize", "--teacher", "cifar10/resnet20", "--checkpoint", str(cifar10 / "resnet20.safetensors")]
    arguments += ["--weights", "8", "--activations", "8", "--eval", str(cifar10 / "test.npz")]
    # Fewer images and steps than the default keep this short; benchmarks/ has the whole job.
    assert main([*arguments, "--count", "16", "--steps", "60", "--out", str(tmp_path / "m")]) == 0
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    accuracy = next(row["accuracy"]["value"] for row in report["rows"] if row["source"] == "zeroq")
    assert report["judged_images"] == 5000
    assert accuracy >= report["teacher_accuracy"]["value"] - 0.005
