"""Every test runs offline and on one thread, also in the processes it starts."""

import atexit
import os
import random
import runpy
import shutil
import tempfile
from pathlib import Path

OFFLINE = Path(__file__).parent / "offline"

# before torch is imported, and inherited by child processes
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
if "NPGMF_TEST_CACHE" not in os.environ:  # one for all processes of a run
    os.environ["NPGMF_TEST_CACHE"] = tempfile.mkdtemp(prefix="npgmf-cache-")
    atexit.register(shutil.rmtree, os.environ["NPGMF_TEST_CACHE"], ignore_errors=True)
for name in ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME"):
    os.environ[name] = f"{os.environ['NPGMF_TEST_CACHE']}/{name.lower()}"
    Path(os.environ[name]).mkdir(exist_ok=True)
# not a fixture, so that it holds for doctests and for code that runs at import as well
if str(OFFLINE) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")]))
    runpy.run_path(str(OFFLINE / "sitecustomize.py"))

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# the same examples in every run
settings.register_profile("stable", derandomize=True, deadline=None, database=None)
settings.load_profile("stable")

# start-up modules of processes
collect_ignore = ["commands/small", "offline"]


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The same random weights in every order of the tests, and in fixtures; doctests seed themselves."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what libraries draw from
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # the longest first: at the end one process would run a notebook and the others wait
    items.sort(key=lambda item: "notebooks" not in item.path.parts)
