"""The tables of the paper (arXiv 2506.18544): its values, and measured ones beside them.

python studies/report_paper.py studies/results --output docs/paper.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from _common import command_of, load
from _method import section
from jinja2 import StrictUndefined, Template

from anomalib_npgmf.benchmark.__main__ import portable
from anomalib_npgmf.benchmark.origin import origin
from anomalib_npgmf.benchmark.results import MERGED, PLAIN, Group, Results, load_results
from anomalib_npgmf.benchmark.tables import spread, table

# the paper's name of a method -> name of the model in the plans; "S-T" is not anomalib's STFPM
_MODELS = {
    "NPGMF": "npgmf",
    "PatchCore": "patchcore",
    "PaDiM": "padim",
    "RD": "reverse_distillation",
    "STFPM": "stfpm",
    "DRAEM": "draem",
}
# rows of table V and of the controls -> model and variant in the plans
_ABLATION = {
    "logical branch, baseline": ("npgmf", "baseline"),
    "logical branch, baseline+AGU": ("npgmf", "text"),
    "logical branch, baseline+NMC": ("npgmf", "codebooks"),
    "logical branch, baseline+NMC+AGU": ("npgmf", "text_codebooks"),
    "structural branch": ("structural", "default"),
    "both branches": ("npgmf", "both"),
}
_CONTROLS = {
    "baseline+learned vector": ("npgmf", "learned"),
    "baseline+NMC+learned vector": ("npgmf", "learned_codebooks"),
    "baseline+random vector": ("npgmf", "random"),
    "baseline+NMC+random vector": ("npgmf", "random_codebooks"),
}
_PLANS = {
    "paper_loco": "loco",
    "paper_mvtec_ad": "mvtec_ad",
    "paper_btad": "btad",
    "paper_ablation_loco": "loco",
    "paper_ablation_mvtec_ad": "mvtec_ad",
}

_ORDERS = {"1 : 3 (default)": "1:3", "3 : 1": "3:1"}
_PUBLISHED_ORDER = {"columns": ["sPRO@0.05", "image AUROC"], "methods": {"1 : 3 (default)": [75.8, 85.9]}}
_EFFICIENCY = ["model", "part", "px", "GFLOP", "parameters, M", "ms per image", "images per second", "bank, patches"]
_PUBLISHED_EFFICIENCY = ["arXiv 2506.18544", "logical branch", "256", "125", "", "21", "47", ""]


def paper_values() -> dict[str, Any]:
    """The published values: per table its columns, and methods with a value or pair per column, in per cent."""
    values: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("paper_values.yaml").read_text(encoding="utf-8"))
    return values


def load_measured(folder: Path) -> dict[str, Results]:
    """Records by plan, for those plans of the paper that have a folder; groups get the paper's categories."""
    if not folder.is_dir():
        msg = f"There is no folder {folder}; give the folder that holds the output folders of the plans."
        raise FileNotFoundError(msg)
    values = paper_values()
    measured = {plan: load_results(folder / plan) for plan in _PLANS if (folder / plan).is_dir()}
    for plan, results in measured.items():
        for group in results.groups:
            # a mean over fewer categories than the paper's would not be comparable
            group.categories = [name for name in values[_PLANS[plan]]["columns"] if name != "mean"]
    return measured


def render(folder: Path, command: str) -> str:
    """All tables as Markdown, by the template ``paper.md.j2``.

    Args:
        folder: Folder of the output folders of the plans and of the results files.
        command: Command that makes the report.
    """
    measured, values = load_measured(folder), paper_values()
    groups = {plan: {(g.model, g.variant): g for g in results.groups} for plan, results in measured.items()}
    models = {plan: {model: group for (model, _), group in found.items()} for plan, found in groups.items()}
    npgmf = models.get("paper_loco", {}).get("npgmf")
    on_loco, on_mvtec_ad = (groups.get(f"paper_ablation_{data}", {}) for data in ("loco", "mvtec_ad"))
    ablation = {
        part: [_measured(on_loco.get(key), "sPRO@0.05 mean"), _measured(on_mvtec_ad.get(key), *PLAIN[::-1])]
        for part, key in {**_ABLATION, **_CONTROLS}.items()
    }
    branches = {
        f"{name} branch": [_measured(npgmf, f"sPRO@0.05 {kind}", name=name) for kind in ("logical", "structural")]
        for name in ("logical", "structural")
    }
    orders = {
        title: [_measured(npgmf, metric, name=name) for metric in ("sPRO@0.05 mean", "AUROC mean")]
        for title, name in _ORDERS.items()
    }
    efficiency = load("efficiency", folder)
    template = Template(Path(__file__).with_name("paper.md.j2").read_text(encoding="utf-8"), undefined=StrictUndefined)
    text = template.render(
        command=command,
        unmeasured=", ".join(f"`{plan}`" for plan in _PLANS if not (plan in measured and measured[plan].records)),
        methods=lambda name, *metrics: _methods(
            values[name], models.get(f"paper_{name.removesuffix('_limits')}", {}), *metrics
        ),
        ablation=_beside("part", values["ablation"], ablation),
        branches=_beside("map", values["branches"], branches),
        orders=_beside("logical : structural", _PUBLISHED_ORDER, orders),
        efficiency=table(_EFFICIENCY, [_PUBLISHED_EFFICIENCY, *map(_cost, efficiency["rows"])]),
        made=efficiency.get("environment"),
        made_by=command_of(efficiency) if efficiency["rows"] else "",
        method=section(folder),
        origins={plan: origin(results) for plan, results in measured.items()},
    )
    return f"{text}\n"


def _cost(row: Mapping[str, Any]) -> list[str]:
    """A row of Table VII, as ``latency.py presets`` left it."""
    size = [str(row["image_size"]), f"{row['gflop']:.1f}", f"{row['parameters_m']:.1f}"]
    speed = [f"{row['cpu_ms']:.0f}", f"{1000 / row['cpu_ms']:.2f}", str(row["bank_patches"])]
    return [f"preset `{row['preset']}`", row["what"], *size, *speed]


def _measured(group: Group | None, *metrics: str, name: str = MERGED, category: str | None = None) -> str:
    """Values of a map, of a category or over all; empty if none was measured."""
    texts = [spread(group.values(name, metric, category)) for metric in metrics] if group else []
    return " / ".join(texts) if any(texts) else ""


def _methods(values: Mapping[str, Any], groups: Mapping[str, Group], *metrics: str) -> str:
    """The paper's row of each method and, below it, the measured one if the plan has that method.

    A column is a category, the mean, or the value inserted for ``{}`` in the names of the metrics.
    """
    rows = []
    for method, published in values["methods"].items():
        rows.append([method, "paper", *map(_published, published)])
        if method in _MODELS:
            group = groups.get(_MODELS[method])
            names = {c: [metric.format(c) for metric in metrics] for c in values["columns"]}
            categories = group.categories if group else []
            cells = [_measured(group, *names[c], category=c if c in categories else None) for c in names]
            rows.append([method, "measured", *cells])
    return table(["method", "source", *map(str, values["columns"])], rows)


def _beside(title: str, values: Mapping[str, Any], measured: Mapping[str, Sequence[str]]) -> str:
    """Rows of measured values, each of them right of the paper's."""
    header = [heading for column in values["columns"] for heading in (f"{column}, paper", "measured")]
    rows = []
    for name, texts in measured.items():
        published = values["methods"].get(name, [""] * len(texts))
        pairs = zip(map(_published, published), texts, strict=True)
        rows.append([name, *(text for pair in pairs for text in pair)])
    return table([title, *header], rows)


def _published(value: float | str) -> str:
    return value.replace("/", " / ") if isinstance(value, str) else f"{value:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables; 1 and a sentence on standard error if the input is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "records", type=Path, help="folder of the output folders of the plans, each named like its plan"
    )
    parser.add_argument("--output", type=Path, required=True, help="Markdown file")
    options = parser.parse_args(arguments)
    command = f"python studies/report_paper.py {portable(options.records)} --output {portable(options.output)}"
    try:
        text = render(options.records, command)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
