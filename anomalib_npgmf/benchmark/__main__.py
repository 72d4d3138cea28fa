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

    Returns:
        Exit status: 0 if every cell is finished; 1 if one failed or, with one sentence on standard error, if the input
        is wrong; 130 if it was interrupted. A run that is ended by SIGTERM or SIGHUP ends its cell as well.
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
    run.set_defaults(function=_run)
    add = run.add_argument
    add("plan", type=Path, help="YAML file, such as configs/plans/synthetic.yaml")
    add("--output", type=Path, help="folder of the records (results/<name of the plan>)")
    text = "local weights of a timm network, for every model that uses it; may be given several times"
    add("--weights", action="append", default=[], metavar="NAME=PATH", help=text)
    add("--root", help="root of the data set instead of the plan's; {seed} and {category} are filled in")
    add("--epochs", type=int, help="number of epochs instead of the plan's")
    text = "only the cells whose name fits, as 'npgmf/*/seed0'"
    add("--only", nargs="+", default=[], metavar="PATTERN", help=text)
    add("--retry-failed", action="store_true", help="run cells again that failed before")
    report = commands.add_parser("report", help="render records as Markdown and PNG", description=_report.__doc__)
    report.set_defaults(function=_report)
    add = report.add_argument
    add("records", type=Path, help="output folder of the run command")
    add("--plan", type=Path, help="plan of the run: what should be there, in this order")
    add("--output", type=Path, required=True, help="Markdown file; pictures go to images/ beside it")
    return parser


def _run(options: argparse.Namespace) -> int:
    """Train and test every cell (model, variant, category, seed) of a plan.

    Each cell leaves one JSON file. The same command goes on where an earlier one stopped: finished cells are not run
    again, failed ones only with --retry-failed.
    """
    plan = load_plan(options.plan, options.root, options.epochs).select(options.only)
    weights = parse_weights(options.weights)
    # what repeats a cell, without the folders of this machine
    command = f"{PROGRAM} run {portable(options.plan)} --only {{key}}"
    command += "".join(f" --weights {shlex.quote(f'{name}={path.name}')}" for name, path in weights.items())
    command += "" if options.epochs is None else f" --epochs {options.epochs}"
    output = options.output or Path("results") / plan.name
    runner = Runner(output, weights, command)
    states = list(runner.run(plan, retry_failed=options.retry_failed).values())
    print(f"{states.count('finished')} finished, {states.count('failed')} failed, in {output}")
    return 0 if states.count("finished") == len(states) else 1


def _report(options: argparse.Namespace) -> int:
    """Write a report of finished cells, from their records alone."""
    from anomalib_npgmf.benchmark.report import write_report

    choice = f" --plan {portable(options.plan)}" if options.plan else ""
    command = f"{PROGRAM} report {portable(options.records)}{choice} --output {portable(options.output)}"
    plan = load_plan(options.plan) if options.plan else None
    print(*write_report(options.records, options.output, command, plan), sep="\n")
    return 0


def portable(path: Path) -> str:
    """A path for the command line, without the folders of this machine."""
    return shlex.quote(path.name if path.is_absolute() else path.as_posix())


if __name__ == "__main__":
    sys.exit(main())
