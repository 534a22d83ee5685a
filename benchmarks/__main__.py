"""All benchmarks under one name: python -m benchmarks NAME, with the options that python benchmarks/NAME.py has."""

import ast
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent
SHARED = ("__init__", "__main__", "measure", "table")


def scripts() -> dict[str, str]:
    """The first line of each script's documentation, by name."""
    files = [path for path in sorted(HERE.glob("*.py")) if path.stem not in SHARED]
    return {path.stem: ast.get_docstring(ast.parse(path.read_text())).splitlines()[0] for path in files}


def main() -> None:
    found = scripts()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in found:
        del sys.argv[1]
        sys.path.insert(0, str(HERE))  # as `python benchmarks/NAME.py` has it
        runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")
        return
    listed = "\n".join(f"  {script:<18}{about}" for script, about in found.items())
    text = f"python -m benchmarks NAME, and NAME --help for its options:\n\n{listed}"
    if name not in ("-h", "--help"):
        print(f"There is no benchmark {name!r}. {text}", file=sys.stderr)
        sys.exit(2)
    print(text)


if __name__ == "__main__":
    main()
