import re
from pathlib import Path

DOC = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOC.read_text(), flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["batch"].observations.shape == (8, 16, 64, 64, 3)
    assert names["batch"].actions.shape == (8, 16, 6)
    assert names["item"]["observations"].shape == (16, 3, 64, 64)
    assert (tmp_path / "frames.png").exists()
