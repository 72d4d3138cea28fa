"""Every command that README, the pages for users, notebooks and configurations print runs as printed, and ends.

What it trains is made small by the files it finds (`_workplace`) and by its environment (small/sitecustomize.py), not
by other arguments. `test_epochs_on_the_command_line` checks the numbers of epochs.
"""

import csv
from pathlib import Path

import pytest
import yaml
from _documents import commands, files, python_blocks, sections, title
from _workplace import FEW, ROOT, run, run_prepared, shrink_configs, workplace

__all__ = ["workplace"]  # the fixture

# pages of results, whose commands measure at full size for hours
MEASURED = ("findings", "large_banks", "paper", "speed", "results_*")
DOCUMENTS = [
    ROOT / "README.md",
    *sorted(
        path for path in (ROOT / "docs").glob("*.md") if not any(path.match(f"{pattern}.md") for pattern in MEASURED)
    ),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted((ROOT / "configs").glob("*.yaml")),
    *sorted((ROOT / "configs" / "presets").glob("*.yaml")),
]
# sections whose commands need the results of another section's
CONTINUES = dict.fromkeys(
    ("README: Export", "docs/export: Export", "docs/export: A smaller bank"),
    "README: Run the demo",
) | {"03_compare_with_builtin_models: A reliable comparison": "docs/benchmark: With plans"}
# printed, but not run here
NOT_RUN = {
    "anomalib train --model Npgmf": "names the model in a sentence; every other command has data too",
    "anomalib train --model anomalib_npgmf.Npgmf": "names the model in a sentence; every other command has data too",
    "anomalib benchmark": "a name in a sentence",
    "anomalib predict": "a name in a sentence",
    "anomalib test": "a name in a sentence",
    'python3 -m venv .venv && .venv/bin/pip install ".[test]" && .venv/bin/python -m pytest -n 2 --dist worksteal -q': (
        "this very run"
    ),
    "python -m anomalib_npgmf.export describe FILE": "FILE stands for any exported file: tests/export/test_metadata.py",
    "python studies/pictures.py --categories sorting_tray cable_pairs loose_screws": "trains at full size",
    "python studies/spro.py measure": "measures at full size",
    "python studies/tries.py measure": "makes two thousand tries",
    "python studies/latency.py presets": "measures at full size",
}
INSTALLATION = ("pip install ", ".venv/bin/pip install ", "python3 -m venv ")  # what .ci/run does


def printed() -> dict[str, list[str]]:
    """Commands by document and section."""
    return {title(path, heading): commands(text) for path in DOCUMENTS for heading, text in sections(path).items()}


def chains() -> dict[str, list[str]]:
    """Commands that run one after the other in one folder: a section's, after those of the section it continues."""
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name, section in printed().items():
        chain = found.setdefault(CONTINUES.get(name, name), [])
        for command in section:
            steps = [step for step in command.split(" && ") if not step.startswith(INSTALLATION)]
            rest = " && ".join(steps).removeprefix(".venv/bin/")
            if command not in NOT_RUN and rest and rest not in seen:
                seen.add(rest)
                chain.append(rest)
    return {name: chain for name, chain in found.items() if chain}


CHAINS = chains()


@pytest.mark.parametrize("name", CHAINS)
def test_ends(name: str, workplace: Path) -> None:
    for path in DOCUMENTS:
        for text in sections(path).values():
            for file, content in files(text).items():
                (workplace / file).write_text(content, encoding="utf-8")
    reports = [command for command in CHAINS[name] if command.startswith("python studies/")]
    for command in reports:  # of results files, which belong to the plans as they are
        run_prepared(command, workplace)
    shrink_configs(workplace)
    for command in CHAINS[name]:
        if command not in reports:
            if name.startswith("README"):  # what everyone starts with, from the shell as they do
                run(command, workplace, NPGMF_TEST_EPOCHS=str(FEW))
            else:
                run_prepared(command, workplace)
            if command.startswith("anomalib benchmark"):  # which succeeds whatever happens
                check_benchmark(workplace, Path(command.split()[-1]).name)


def check_benchmark(workplace: Path, config: str) -> None:
    """A row for every model or preset of the configuration, with a figure for its images."""
    (results,) = (workplace / "runs" / "benchmark").glob("*/results.csv")
    with results.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    model = yaml.safe_load((workplace / "configs" / config).read_text(encoding="utf-8"))["benchmark"]["model"]
    grid = model["class_path"]["grid"] if isinstance(model["class_path"], dict) else [model["class_path"]]
    assert [row["model.class_path"] for row in rows] == grid
    assert all(0 <= float(row["image_AUROC"]) <= 1 for row in rows)


def test_the_demo_in_python_ends(workplace: Path) -> None:
    (block,) = python_blocks(sections(ROOT / "README.md")["The demo in Python"])
    (workplace / "demo.py").write_text(block, encoding="utf-8")
    run("python demo.py", workplace)


def test_nothing_is_left_out() -> None:
    everything = [command for section in printed().values() for command in section]
    assert set(NOT_RUN) <= set(everything)  # nothing that is printed no longer
    assert not [command for command in everything if "..." in command]  # which nobody can run
    documents = ("README", "docs/benchmark", "docs/data", "docs/metrics", "docs/offline", "benchmark_folder", "fast")
    for document in (*documents, "01_getting_started"):
        assert any(name.startswith(document) for name in CHAINS)
