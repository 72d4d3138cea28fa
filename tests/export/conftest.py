"""The exported models, built once for all processes of a test run."""

import pytest
from _exported import Exported, build
from filelock import FileLock

from anomalib_npgmf import Npgmf


@pytest.fixture(scope="session")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Indirect parameter: the kind of model."""
    base = tmp_path_factory.getbasetemp()
    shared = base if getattr(request.config, "workerinput", None) is None else base.parent
    folder = shared / f"exported_{request.param}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir()
            build(folder, request.param)
            (folder / "done").touch()
    return Exported(request.param, folder)


@pytest.fixture(scope="session")
def loaded(exported: Exported) -> Npgmf:
    """The model, reloaded once; tests leave it as it is."""
    return Npgmf.load_from_checkpoint(exported.checkpoint).eval()
