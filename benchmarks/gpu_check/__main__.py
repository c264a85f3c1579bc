"""Entry point: `python benchmarks/gpu_check --help`."""

import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - said here in one line, before a newer syntax is read
    print("error: gpu-check needs Python 3.11 or newer, not", sys.version.split()[0], file=sys.stderr)
    sys.exit(2)

HERE = Path(__file__).resolve().parent
# A folder that is run puts itself first on the path, where its files would hide modules of the same names.
sys.path[:] = [str(HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != HERE)]

from gpu_check.driver import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
