"""Names must be found in a cold process, whatever is imported first, so most tests here start one.

They rely on the package being installed: without its metadata there is no entry point.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from textwrap import dedent
from typing import Any

import pytest

REPORT = """
import json, sys
import anomalib, anomalib.data as data, anomalib.models as models, anomalib_npgmf
print(json.dumps({
    "names": [hasattr(models, "Npgmf"), hasattr(data, "SyntheticLOCO"), hasattr(data, "LOCO")],
    "exported": [models.__all__.count("Npgmf"), data.__all__.count("LOCO")],
    "listed": "npgmf" in models.list_models(),
    "hooks": [repr(finder) for finder in sys.meta_path if "npgmf" in repr(finder)],
    "classes": [type(package).__name__ for package in (anomalib, anomalib_npgmf, models, data)],
}))
"""


def run_cold(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a new interpreter."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


def last_line(result: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(result.stdout.splitlines()[-1])


def own_warnings(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if "anomalib-npgmf" in line]


def assert_found_without_trace(report: dict[str, Any]) -> None:
    assert all(report["names"])
    assert report["exported"] == [1, 1]
    assert report["listed"]
    assert report["hooks"] == []
    assert set(report["classes"]) == {"module"}


def test_entry_point_is_installed() -> None:
    (entry_point,) = (e for e in entry_points(group="torch.backends") if e.name == "anomalib_npgmf")
    assert entry_point.value == "anomalib_npgmf.host.plugin:autoload"


def test_import_is_light() -> None:
    code = """
    import sys, anomalib_npgmf, anomalib_npgmf.host.plugin
    heavy = {"torch", "anomalib", "numpy", "lightning", "timm"} & set(sys.modules)
    assert not heavy, heavy
    """
    run_cold(dedent(code))


def test_autoload_costs_less_than_a_millisecond() -> None:
    code = """
    import sys, time
    from anomalib_npgmf.host import plugin

    def cost():
        start = time.perf_counter()
        plugin.autoload()
        end = time.perf_counter()
        assert plugin._Finder in sys.meta_path
        plugin._stop()
        return end - start

    best = min(cost() for _ in range(20))
    assert best < 1e-3, best
    """
    run_cold(dedent(code))


@pytest.mark.parametrize(
    ("hidden", "environment"),
    [("site-packages", {}), ("nothing", {"ANOMALIB_NPGMF_AUTOLOAD": "0"})],
    ids=["anomalib is not installed", "switched off"],
)
def test_autoload_leaves_no_trace(hidden: str, environment: dict[str, str]) -> None:
    code = f"""
    import sys
    from anomalib_npgmf.host import plugin
    sys.path = [path for path in sys.path if {hidden!r} not in path]
    finders = list(sys.meta_path)
    plugin.autoload()
    assert sys.meta_path == finders, sys.meta_path
    assert "anomalib" not in sys.modules
    """
    run_cold(dedent(code), **environment)


def test_autoload_never_raises() -> None:
    code = """
    import sys
    from anomalib_npgmf.host import plugin

    def fail(name):
        raise ValueError("broken path")

    plugin.find_spec = fail
    plugin.autoload()
    assert plugin._Finder not in sys.meta_path
    """
    assert "broken path" in run_cold(dedent(code)).stderr


def test_torch_first_then_every_way_of_naming() -> None:
    code = """
    import torch
    from anomalib.models import get_model

    small = {"preset": "small"}
    paths = ("Npgmf", "anomalib.models.Npgmf")
    built = [get_model("npgmf", **small), *(get_model({"class_path": path, "init_args": small}) for path in paths)]
    from anomalib_npgmf import Npgmf
    assert all(type(model) is Npgmf for model in built), built

    from anomalib.data import get_datamodule
    from anomalib_npgmf.data import LOCO, SyntheticLOCO
    for cls in (SyntheticLOCO, LOCO):
        assert type(get_datamodule({"class_path": cls.__name__})) is cls

    from anomalib.pipelines.benchmark.generator import BenchmarkJobGenerator
    model = {"class_path": "Npgmf", "init_args": small}
    config = {"seed": 0, "model": model, "data": {"class_path": "SyntheticLOCO"}}
    (job,) = BenchmarkJobGenerator("cpu").generate_jobs(config, None)
    assert type(job.model) is Npgmf and type(job.datamodule) is SyntheticLOCO
    """
    result = run_cold(dedent(code) + REPORT)
    assert_found_without_trace(last_line(result))
    assert own_warnings(result) == []


def test_own_module_first_and_unknown_host_version() -> None:
    # halfway through importing a part of this project, anomalib.models gets imported
    code = """
    import anomalib
    anomalib.__version__ = "2.8.0"
    from anomalib_npgmf.torch_model import NpgmfModel
    """
    result = run_cold(dedent(code) + REPORT)
    assert_found_without_trace(last_line(result))
    (warning,) = own_warnings(result)
    assert "2.8.0" in warning


def test_broken_installation_warns_once_and_register_makes_up_for_it() -> None:
    code = """
    import json, sys
    sys.modules["anomalib_npgmf.lightning_model"] = None  # makes its import fail
    import anomalib.data, anomalib.models, anomalib_npgmf
    assert "padim" in anomalib.models.list_models()
    assert not hasattr(anomalib.models, "Npgmf") and hasattr(anomalib.data, "LOCO")
    assert not any("npgmf" in repr(finder) for finder in sys.meta_path)
    try:
        anomalib_npgmf.register()
    except ImportError:
        del sys.modules["anomalib_npgmf.lightning_model"]
    anomalib_npgmf.register()
    anomalib_npgmf.register()
    """
    result = run_cold(dedent(code) + REPORT)
    assert_found_without_trace(last_line(result))
    (warning,) = own_warnings(result)
    assert "Npgmf to anomalib.models" in warning
    assert "anomalib_npgmf.lightning_model" in warning


def test_command_line() -> None:
    """Short names on the command line: a sentence for every argument, and a resolved configuration."""
    code = """
    import contextlib, inspect, io, json
    from anomalib.cli.cli import AnomalibCLI

    def output(*arguments):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            AnomalibCLI(["train", *arguments])
        return out.getvalue()

    report = {
        "model help": output("--model.help", "Npgmf"),
        "data help": output("--data.help", "SyntheticLOCO"),
        "short": output("--model", "Npgmf", "--model.preset", "small", "--data", "SyntheticLOCO", "--print_config"),
        "dotted": output("--model", "anomalib_npgmf.Npgmf", "--data", "LOCO", "--print_config"),
    }
    from anomalib_npgmf import Npgmf, SyntheticLOCO
    report["model arguments"] = list(inspect.signature(Npgmf).parameters)
    report["data arguments"] = list(inspect.signature(SyntheticLOCO).parameters)
    print(json.dumps(report))
    """
    report = last_line(run_cold(dedent(code), COLUMNS="200"))
    for part in ("model", "data"):
        text = report[f"{part} help"]
        for name in report[f"{part} arguments"]:
            _, found, rest = text.partition(f"\n  --{part}.{name} ")
            assert found, f"no help for --{part}.{name} in:\n{text}"
            # "VALUE   what it is (type: ..., default: ...)", up to the next option
            sentence = rest.partition("\n  --")[0].partition("(type:")[0].split()[1:]
            assert len(sentence) >= 2, f"--{part}.{name} has no sentence"
    assert "preset: small" in report["short"]
    assert "anomalib_npgmf" in report["short"].partition("data:")[0]
    assert "SyntheticLOCO" in report["short"].partition("data:")[2]
    assert "Npgmf" in report["dotted"]
    assert "LOCO" in report["dotted"].partition("data:")[2]
