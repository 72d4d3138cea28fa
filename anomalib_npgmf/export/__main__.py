"""``python -m anomalib_npgmf.export describe FILE``: print what an exported file or a checkpoint says about itself."""

import argparse
import json
import sys
from collections.abc import Sequence

from anomalib_npgmf.export.metadata import describe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command line; ``None`` takes the process's.

    Returns:
        Exit status: 0, or 1 after an error, which is printed as one sentence.
    """
    parser = argparse.ArgumentParser(prog="python -m anomalib_npgmf.export", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("describe", help="print the metadata of a file as JSON")
    command.add_argument("file", help="an .onnx, .xml, .pt or .ckpt file")
    options = parser.parse_args(arguments)
    try:
        metadata = describe(options.file)
    except (FileNotFoundError, ValueError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(metadata, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
