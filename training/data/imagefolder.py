"""The ImageNet layout: ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg."""

from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from backbones.errors import InputError

from .decode import Picture
from .settings import DataSettings, Source


class FolderSource:
    """One split: every picture under a folder per class, classes and files in alphabetical order."""

    def __init__(self, folder: Path, classes: list[str], channels: int):
        self.classes, self.channels = classes, channels
        self._files: list[tuple[Path, int]] = []
        for label, name in enumerate(classes):
            if (folder / name).is_dir():
                files = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
                self._files += [(file, label) for file in files]

    def __len__(self) -> int:
        return len(self._files)

    def picture(self, index: int) -> Picture:
        return Picture.read(self._files[index][0], self.channels)

    def target(self, index: int) -> int:
        return self._files[index][1]

    def name(self, index: int) -> str:
        return str(self._files[index][0])


@dataclass
class ImageFolder(DataSettings):
    """Pictures in a folder per class.

    Args:
        root: the folder that holds `train` and `val`.
    """

    name: str = "imagefolder"
    root: str | None = None

    def splits(self) -> tuple[Source, Source]:
        if self.root is None:
            raise InputError(
                "data=imagefolder needs data.root=PATH, a folder with train/CLASS/*.jpg and val/CLASS/*.jpg."
            )
        root = Path(self.root).expanduser()
        for part in (root, root / "train", root / "val"):
            if not part.is_dir():
                raise InputError(
                    f"The data folder {part} does not exist. data.root must hold train/CLASS/*.jpg and val/CLASS/*.jpg."
                )
        classes = _subfolders(root / "train")
        unknown = [name for name in _subfolders(root / "val") if name not in classes]
        if unknown:
            raise InputError(
                f"The class(es) {', '.join(unknown[:5])} of {root / 'val'} do not occur in {root / 'train'}, so no "
                "network could learn them. Add training pictures of them, or remove them from val."
            )
        train, val = (FolderSource(root / part, classes, self.channels) for part in ("train", "val"))
        for part, source in (("train", train), ("val", val)):
            if len(source) == 0:
                raise InputError(
                    f"There are no pictures in {root / part}: expected {part}/CLASS/*.jpg (or "
                    f"{', '.join(IMG_EXTENSIONS[1:])})."
                )
        return train, val


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir())
