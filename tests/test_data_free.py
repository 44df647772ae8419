"""What "data-free" means: the main job runs where real data cannot be reached, and the seed alone decides its result.

An import contract cannot see a tensor that is handed in, nor a file that is opened: here the job runs in a process that
refuses `dfqlab.data`, scikit-learn, and every file in the folder of real data.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from dfqlab.images import SyntheticSet

REFUSE = """
import sys

def no_real_data(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and "/dfqlab/data/" in arguments[0].replace("\\\\", "/"):
        raise PermissionError(f"{arguments[0]} is real data")

sys.modules["sklearn"] = sys.modules["dfqlab.data"] = None  # `import` then says that there is none
sys.addaudithook(no_real_data)
"""
JOB = """
import sys
from pathlib import Path
import dfqlab

out, seed = Path(sys.argv[1]), int(sys.argv[2])
teacher = dfqlab.load_teacher("digits/vgg")
images = dfqlab.synthesize(teacher, "zeroq", count=4, seed=seed, steps=2)
images.save(out / "images.safetensors")
model = dfqlab.quantize(teacher, images, weights=4, activations=4)
model.save(out)
dfqlab.export_onnx(dfqlab.load_model(out), out / "model.onnx")
"""
FILES = ("images.safetensors", "model.safetensors", "model.onnx")
PROBES = ["import sklearn", "import dfqlab.data", "import dfqlab; dfqlab.load_data", "open({digits!r}, 'rb')"]


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What three processes made: two with seed 0, of which one can reach real data, and one with seed 1."""
    folders = {}
    for name, code, seed in (("first", REFUSE + JOB, 0), ("again", JOB, 0), ("other", REFUSE + JOB, 1)):
        folders[name] = tmp_path_factory.mktemp(name)
        done = run(code, str(folders[name]), str(seed))
        assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.parametrize("name", FILES)
def test_the_job_runs_where_real_data_cannot_be_reached(made: dict[str, Path], name: str) -> None:
    assert (made["first"] / name).stat().st_size > 1000


@pytest.mark.parametrize("probe", PROBES)
def test_real_data_cannot_be_reached_there(probe: str) -> None:
    import dfqlab.data

    (digits,) = Path(dfqlab.data.__file__).parent.glob("*.npz")
    done = run(REFUSE + probe.format(digits=str(digits)))
    assert done.returncode != 0
    assert "None in sys.modules" in done.stderr or "is real data" in done.stderr


def test_every_module_below_the_pipeline_is_imported_without_real_data() -> None:
    code = REFUSE + (
        "import importlib, pkgutil, dfqlab\n"
        "above = ('dfqlab.data', 'dfqlab.pipeline', 'dfqlab.cli', 'dfqlab.lab')\n"
        "for module in pkgutil.walk_packages(dfqlab.__path__, 'dfqlab.', onerror=lambda name: None):\n"
        "    if not module.name.startswith(above):\n"
        "        importlib.import_module(module.name)\n"
        "print(*(name for name in sys.modules if name.startswith('dfqlab.')))\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert {"dfqlab.recipes.zeroq", "dfqlab.deployment.certificate", "dfqlab.evaluation"} <= set(done.stdout.split())


@pytest.mark.parametrize("name", FILES)
def test_two_processes_with_one_seed_give_the_same_bytes(made: dict[str, Path], name: str) -> None:
    assert (made["first"] / name).read_bytes() == (made["again"] / name).read_bytes()


def test_another_seed_gives_other_images_and_other_integers(made: dict[str, Path]) -> None:
    sets = [SyntheticSet.load(made[name] / "images.safetensors") for name in ("first", "other")]
    assert (sets[0].seed, sets[1].seed) == (0, 1)
    assert not any(image.equal(other) for image in sets[0].images for other in sets[1].images)
    # Weights are the teacher's and know nothing of images; biases stand on the grid of what comes in, which does.
    differ = set()
    with (
        safe_open(made["first"] / "model.safetensors", "pt") as one,
        safe_open(made["other"] / "model.safetensors", "pt") as other,
    ):
        for name in one.keys():  # noqa: SIM118
            if not one.get_tensor(name).equal(other.get_tensor(name)):
                differ.add(name.rpartition(".")[2])
    assert "bias_codes" in differ
    assert "scale" in differ
