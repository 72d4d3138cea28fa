"""``python -m anomalib_npgmf.benchmark run|report``: train and test what a plan says; render what came out."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from anomalib_npgmf.benchmark.plan import load_plan
from anomalib_npgmf.benchmark.run import Runner
from anomalib_npgmf.benchmark.weights import parse_weights

PROGRAM = "python -m anomalib_npgmf.benchmark"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command line, without the program; ``sys.argv`` if None.

    Returns:
        Exit status: 0 if every cell is finished; 1 if one failed or, with one sentence on standard error, if the input
        is wrong; 130 if it was interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.function(options))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with what is not done", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="run the cells of a plan that are not done yet", description=_run.__doc__)
    run.add_argument("plan", type=Path, help="YAML file, such as configs/plans/synthetic.yaml")
    run.add_argument("--output", type=Path, help="folder of the records (results/<name of the plan>)")
    run.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="local weights of a timm network, for every model that uses it; may be given several times",
    )
    run.add_argument("--root", help="root of the data set instead of the plan's; {seed} and {category} are filled in")
    run.add_argument("--epochs", type=int, help="number of epochs instead of the plan's")
    run.add_argument(
        "--only", nargs="+", default=[], metavar="PATTERN", help="only the cells whose name fits, as 'npgmf/*/seed0'"
    )
    run.add_argument("--retry-failed", action="store_true", help="run cells again that failed before")
    run.set_defaults(function=_run)
    report = commands.add_parser("report", help="render records as Markdown and PNG", description=_report.__doc__)
    report.add_argument(
        "records", type=Path, help="output folder of the run command; with --paper the folder of such folders"
    )
    report.add_argument("--plan", type=Path, help="plan of the run: what should be there, in this order")
    report.add_argument("--output", type=Path, required=True, help="Markdown file; pictures go to images/ beside it")
    report.add_argument(
        "--paper", action="store_true", help="the tables of the paper, its values beside those of the plans paper_*"
    )
    report.set_defaults(function=_report)
    return parser


def _run(options: argparse.Namespace) -> int:
    """Train and test every cell (model, variant, category, seed) of a plan, on all CUDA devices or the CPU.

    Each cell leaves one JSON file. The same command goes on where an earlier one stopped: finished cells are not run
    again, failed ones only with --retry-failed.
    """
    import torch

    plan = load_plan(options.plan, options.root, options.epochs).select(options.only)
    weights = parse_weights(options.weights)
    # what repeats a cell, without the folders of this machine
    parts = ["run", _portable(options.plan), "--only", "{key}"]
    for name, path in weights.items():
        parts += ["--weights", f"{name}={path.name}"]
    if options.epochs is not None:
        parts += ["--epochs", str(options.epochs)]
    runner = Runner(
        output=options.output or Path("results") / plan.name,
        weights=weights,
        command=f"{PROGRAM} {' '.join(part if part == '{key}' else shlex.quote(part) for part in parts)}",
        devices=range(torch.cuda.device_count()),
    )
    states = list(runner.run(plan, retry_failed=options.retry_failed).values())
    print(f"{states.count('finished')} finished, {states.count('failed')} failed, in {runner.output}")
    return 0 if states.count("finished") == len(states) else 1


def _report(options: argparse.Namespace) -> int:
    """Write a report of finished cells, from their records alone."""
    from anomalib_npgmf.benchmark.report import write_report
    from anomalib_npgmf.benchmark.report_paper import write_paper_report

    if options.paper and options.plan:
        msg = "--paper has plans of its own; leave out --plan."
        raise ValueError(msg)
    command = f"{PROGRAM} report {shlex.quote(_portable(options.records))}"
    if options.paper:
        command += f" --paper --output {shlex.quote(_portable(options.output))}"
        written = [write_paper_report(options.records, options.output, command)]
    else:
        plan = load_plan(options.plan) if options.plan else None
        command += f" --plan {shlex.quote(_portable(options.plan))}" if options.plan else ""
        command += f" --output {shlex.quote(_portable(options.output))}"
        written = write_report(options.records, options.output, command, plan)
    print(*written, sep="\n")
    return 0


def _portable(path: Path) -> str:
    """A path without the folders of this machine."""
    return path.name if path.is_absolute() else path.as_posix()


if __name__ == "__main__":
    sys.exit(main())
