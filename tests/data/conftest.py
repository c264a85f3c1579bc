import pytest
from made_recordings import columns, write_hdf5


@pytest.fixture(scope="session")
def data():
    return columns()


@pytest.fixture
def recording(tmp_path, data):
    return write_hdf5(tmp_path / "recording.h5", data)
