"""timm's own model tests, run over the zoo's names. Needs the network once, to fetch timm's source distribution.

    python -m tests.timm_suite              # every name; hours on a few cores
    python -m tests.timm_suite -k nano      # options are pytest's

The tests are those of the installed version of timm. Every one that timm runs over its own list of models runs over
all of ours, also where timm leaves out families by name; weights are not fetched. timm's limits on image sizes hold.
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
        self.names = backbones.list_models()
        self.tagged = [full for name in self.names for full in backbones.list_models(name, pretrained=True) or [name]]

    def list_models(self, filter="", module="", pretrained=False, include_tags=False, **options) -> list[str]:
        """All names for a test of all models or of modules, none for one of models by name or of downloads."""
        if filter or pretrained:
            return []
        return self.tagged if include_tags else self.names

    def pytest_collection(self) -> None:
        timm.list_models = self.list_models

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        known = {*self.names, *self.tagged}
        ours = [item for item in items if "callspec" in vars(item) and item.callspec.params.get("model_name") in known]
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
