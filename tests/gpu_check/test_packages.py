"""Packages that a machine without a network is given: wheels are installed, others are found where they are."""

import zipfile

import pytest
from gpu_check import machine
from gpu_check.packages import unpacked
from gpu_check.surroundings import PACKAGES, Mistake, surroundings


def wheel(folder, name, tag="py3-none-any"):
    path = folder / f"{name}-1.0-{tag}.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", "VALUE = 7\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        file.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


def test_wheels_are_installed_and_bad_ones_named(tmp_path):
    wheel(tmp_path, "made_package")
    other = wheel(tmp_path, "made_for_another_machine", "cp27-cp27m-win32")
    target, bad = unpacked(tmp_path, tmp_path / "target")
    assert target == tmp_path / "target"
    assert bad == [other.name]
    assert (target / "made_package.py").read_text() == "VALUE = 7\n"


def test_a_folder_of_installed_packages_is_used_as_it_is(tmp_path):
    assert unpacked(tmp_path, tmp_path / "target") == (tmp_path, [])


def test_jobs_import_from_the_tree_and_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(PACKAGES, str(tmp_path))
    environment, _ = surroundings(tmp_path, "cpu")
    paths = environment["PYTHONPATH"].split(":")
    assert [path.rpartition("/")[2] for path in paths[1:3]] == ["kernels", "benchmarks"]
    assert paths[3] == str(tmp_path)
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


def test_a_folder_that_is_not_there_is_a_mistake(tmp_path, monkeypatch):
    monkeypatch.setenv(PACKAGES, str(tmp_path / "nothing"))
    with pytest.raises(Mistake, match=f"{PACKAGES}=.*nothing: no such folder"):
        surroundings(tmp_path, "cuda")


def test_missing_modules_are_found_without_importing_them(tmp_path, monkeypatch):
    (tmp_path / "broken_package_x.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.setattr(machine, "ALL", {"broken_package_x": "x", "missing_package_x": "y", "torch": "torch"})
    found = machine.look(surroundings(tmp_path, "cpu")[0] | {"PYTHONPATH": str(tmp_path)})
    assert found.missing == ("missing_package_x",)
    assert not found.cards and not found.problem
    assert found.obstacle.startswith(f"torch {found.torch} (") and found.obstacle.endswith("finds no GPU")


def test_a_torch_that_does_not_start_is_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcuda.so.1 is broken')\n")
    found = machine.look(surroundings(tmp_path, "cpu")[0] | {"PYTHONPATH": str(tmp_path)})
    assert found.obstacle.endswith("ImportError: libcuda.so.1 is broken")
