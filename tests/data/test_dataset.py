import pickle

import numpy as np
import pytest
import torch
from made_recordings import LENGTHS, columns, write_hdf5
from torch.utils.data import DataLoader

from aime_fast import DMCVBDataset
from aime_fast.data.packing.pack import pack
from aime_fast.errors import UserError


@pytest.fixture(params=["raw", "png", "hdf5"])
def path(request, recording, tmp_path):
    return recording if request.param == "hdf5" else pack(recording, tmp_path / "out", codec=request.param)


def test_items_are_the_windows_of_the_source_in_order(path, data):
    dataset = DMCVBDataset(path, sequence_length=16, environment="reacher_easy", split="all")
    starts = [(episode, start) for episode, length in enumerate(LENGTHS) for start in range(length - 15)]
    assert len(dataset) == len(starts)
    first = np.cumsum([0, *LENGTHS])
    for index in (0, 7, 24, 25, 26, len(starts) - 1, -1):
        episode, start = starts[index]
        part = slice(first[episode] + start, first[episode] + start + 16)
        item = dataset[index]
        assert item["observations"].dtype == torch.float32
        assert item["observations"].shape == (16, 3, 64, 64)
        expected = data["observations"][part].transpose(0, 3, 1, 2) * (2 / 255) - 1
        np.testing.assert_allclose(item["observations"].numpy(), expected, atol=2e-7)
        for name in ("actions", "rewards", "dones", "terminated"):
            np.testing.assert_array_equal(item[name].numpy(), data[name][part])
    with pytest.raises(IndexError):
        dataset[len(starts)]


def test_worker_processes_give_the_same_items(path, request):
    dataset = DMCVBDataset(path, sequence_length=12, window_stride=5)
    # `fork` inherits the open data; a worker of the others starts from the pickle.
    method = {"raw": "forkserver", "png": "fork", "hdf5": "spawn"}[request.node.callspec.params["path"]]
    batches = list(DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context=method))
    for name in ("observations", "actions", "rewards", "dones", "terminated"):
        found = torch.cat([batch[name] for batch in batches])
        assert torch.equal(found, torch.stack([dataset[i][name] for i in range(len(dataset))]))


def test_a_pickle_is_small_and_reads_the_same(path):
    dataset = DMCVBDataset(path, sequence_length=16)
    stored = pickle.dumps(dataset)
    assert len(stored) < 5000
    again = pickle.loads(stored)
    assert len(again) == len(dataset)
    assert torch.equal(again[3]["observations"], dataset[3]["observations"])


def test_the_sample_is_there_without_asking():
    dataset = DMCVBDataset(environment="cheetah_run", split="val")
    assert len(dataset) == 2 * 113
    assert dataset.action_dim == 6
    assert dataset.environment == "cheetah_run"


def test_all_levels_are_exact(tmp_path):
    frames = np.resize(np.arange(256, dtype=np.uint8), (16, 64, 64, 3))
    path = write_hdf5(tmp_path / "levels.h5", {**columns([16]), "observations": frames})
    scaled = DMCVBDataset(path)[0]["observations"]
    assert scaled.min() == -1 and scaled.max() == 1
    levels = ((scaled + 1) * 127.5).round().permute(0, 2, 3, 1)
    np.testing.assert_array_equal(levels.numpy().astype(np.uint8), frames)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(environment="humanoid_walk"), "recorded in reacher_easy, not in humanoid_walk"),
        (dict(sequence_length=50), "longest of 4 episodes has 40"),
        (dict(window_stride=0), "window_stride is 0"),
        (dict(split="test"), "unknown split"),
    ],
)
def test_impossible_requests_are_refused(recording, arguments, words):
    with pytest.raises(UserError, match=words):
        DMCVBDataset(recording, **arguments)
