"""Tests on the versions that pyproject.toml declares, each in an environment of its own.

``nox`` runs all sessions, ``nox -s newest-3.13`` one, and ``nox -s lowest -- tests/export`` some tests of one. Each
ends with the share of the package that the tests run, lines and branches, without what only other processes run
(``tests/commands``). A session takes about 6 GB of disk and as long as the test suite.
"""

import nox

nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True

SUITE = ["pytest", "-n", "2", "--dist", "worksteal", "-q", "--cov", "anomalib_npgmf", "--cov-branch"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def _test(session: nox.Session, resolution: str) -> None:
    session.install(".[test]", "pytest-cov>=6", f"--resolution={resolution}")
    session.run("uv", "pip", "list", external=True)  # into the log: what was tested
    session.run(*SUITE, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The lowest declared version of every package, on the lowest Python."""
    _test(session, "lowest-direct")


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """The newest versions that fit together."""
    _test(session, "highest")
