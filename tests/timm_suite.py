"""timm's own model tests, run over the zoo's names. Needs the network once, to fetch timm's source distribution.

    python -m tests.timm_suite              # every name; about three hours of one core, and 24 GB of memory
    python -m tests.timm_suite -k nano      # options are pytest's

The tests are those of the installed version of timm, and so are its limits on image sizes and its lists of what is left
out (names of VOLO and GC ViT, which have a test of their own). Weights are not fetched.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import timm

import backbones


class OurNames:
    """A pytest plugin: while tests are collected, `timm.list_models` knows the zoo's names alone.

    Tests that are not about these names, such as those of single models of timm, are left out.
    """

    def __init__(self):
        self.names = set(backbones.list_models())
        self.timms = timm.list_models

    def list_models(self, filter="", module="", pretrained=False, **options) -> list[str]:
        """Which of ours timm's patterns take; those of all modules, as timm names its own, and none to download."""
        return [] if pretrained else [name for name in self.timms(filter, **options) if self.is_ours(name)]

    def is_ours(self, name: object) -> bool:
        """Whether a test's argument is one of our names; of a test without cases it is no text."""
        return isinstance(name, str) and name.partition(".")[0] in self.names

    def pytest_collection(self) -> None:
        timm.list_models = self.list_models

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        tested = [(item, vars(item).get("callspec")) for item in items]
        ours = [item for item, call in tested if call and self.is_ours(call.params.get("model_name"))]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(ours)])
        items[:] = ours


def fetch_tests(folder: Path) -> Path:
    """timm's test of models, out of the source distribution of the installed version."""
    requirement = f"timm=={timm.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "timm", requirement]
    subprocess.run([*command, "--dest", folder], check=True)
    with tarfile.open(folder / f"timm-{timm.__version__}.tar.gz") as archive:
        content = archive.extractfile(f"timm-{timm.__version__}/tests/test_models.py").read()
    path = folder / "test_models.py"
    path.write_bytes(content)
    return path


def main(options: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = fetch_tests(Path(folder))
        quiet = ["-p", "no:cacheprovider", "-W", "ignore", "--rootdir", folder]
        return pytest.main([str(path), *quiet, *options], plugins=[OurNames()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
