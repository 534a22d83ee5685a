"""What may happen to a training picture and its target."""

from dataclasses import dataclass

from backbones.errors import InputError


@dataclass
class DenseAugmentSettings:
    """How training pictures with boxes, masks or maps are resized, cropped and changed; lengths are in pixels.

    Whatever is drawn, a picture keeps its aspect ratio. What a recipe of the literature is called, and how to set it:

    - multi-scale training (Mask R-CNN, Cascade R-CNN): `short_sides`, 480 to 800;
    - that of DETR and Sparse R-CNN: the same, with `first_sides` [400, 500, 600] and `first_crop` [384, 600];
    - large-scale jitter (Ghiasi et al., arXiv:2012.07177): `short_sides` [1024], `max_size` 1024, so that a picture
      just fits into the crop, `jitter` [0.1, 2.0] and `crop` [1024, 1024];
    - semantic segmentation (mmsegmentation): `jitter` [0.5, 2.0], `crop` [512, 512] and `max_class_share` 0.75.

    Args:
        short_sides: lengths from which that of the short side is drawn; None is data.img_size.
        max_size: limit of the long side, for which the short one is made smaller; None is data.max_size.
        jitter: least and greatest factor by which the size is multiplied after that.
        first_sides, first_crop: one half of the pictures is first resized to a short side drawn from the former, and
            cropped to a height and a width drawn between the two lengths of the latter.
        crop: height and width of a crop, at a random place. What is missing on the right and below is padded with the
            data's mean colour, and with IGNORED in a map.
        max_class_share: the share of the crop's labelled pixels that one class may have: up to ten crops are drawn
            until that is so. Of maps only.
        hflip: probability of a horizontal flip.
        photometric: probability that brightness, contrast, saturation, hue and the order of the channels may change,
            each in one half of the cases (SSD, Liu et al., arXiv:1512.02325); the first two alone in grey pictures.
        copy_paste: probability that objects of another picture are pasted (Ghiasi et al.). Needs masks.
    """

    short_sides: list[int] | None = None
    max_size: int | None = None
    jitter: list[float] | None = None
    first_sides: list[int] | None = None
    first_crop: list[int] | None = None
    crop: list[int] | None = None
    max_class_share: float = 1.0
    hflip: float = 0.5
    photometric: float = 0.0
    copy_paste: float = 0.0

    def __post_init__(self):
        for rule, holds in self._rules().items():
            if not holds:
                name = rule.partition(" ")[0]
                raise InputError(f"recipe.dense.{rule}, but is {getattr(self, name)}.")

    def _rules(self) -> dict[str, bool]:
        """What must be so, beginning with the name of a setting, and whether it is."""
        rules = {f"{name} must be between 0 and 1": 0 <= getattr(self, name) <= 1 for name in PROBABILITIES}
        rules |= {
            f"{name} must be null or a list of lengths of at least 1": sides is None or (sides and min(sides) >= 1)
            for name, sides in (("short_sides", self.short_sides), ("first_sides", self.first_sides))
        }
        for name in ("jitter", "first_crop"):
            pair = getattr(self, name)
            rules[f"{name} must be null or two numbers above 0, the lesser first"] = pair is None or (
                len(pair) == 2 and 0 < pair[0] <= pair[1]
            )
        return rules | {
            "max_size must be null or at least 1": self.max_size is None or self.max_size >= 1,
            "crop must be null or [height, width], of at least 1 each": self.crop is None
            or (len(self.crop) == 2 and min(self.crop) >= 1),
            "first_crop must be given with recipe.dense.first_sides, or neither": (self.first_sides is None)
            == (self.first_crop is None),
            "max_class_share must be above 0 and at most 1": 0 < self.max_class_share <= 1,
            "max_class_share must be 1 without recipe.dense.crop": self.max_class_share == 1 or self.crop is not None,
        }


PROBABILITIES = ("hflip", "photometric", "copy_paste")
