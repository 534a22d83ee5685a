"""The second stage of a detector three times over, each on the boxes of the one before (Cascade R-CNN,
arXiv:1712.00726), out of torchvision's parts."""

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.ops import clip_boxes_to_image

# By stage: the least overlap of a region with its object, the units of box corrections, and the weight of the loss.
OVERLAPS = (0.5, 0.6, 0.7)
UNITS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
WEIGHTS = (1.0, 0.5, 0.25)


def stage_of(heads: RoIHeads, number: int) -> RoIHeads:
    """A detector's second stage as stage `number`, 0 to 2, of a cascade."""
    heads.proposal_matcher = Matcher(OVERLAPS[number], OVERLAPS[number], allow_low_quality_matches=False)
    heads.box_coder = BoxCoder(UNITS[number])
    return heads


class CascadeHeads(RoIHeads):
    """A last stage, which may predict masks, after others that each correct the boxes of the one before.

    The score of a class is its mean probability over the stages. The mask head learns in the last stage alone, where
    the paper has one in each.
    """

    def __init__(self, earlier: list[RoIHeads], last: RoIHeads):
        super().__init__(
            last.box_roi_pool,
            last.box_head,
            last.box_predictor,
            *(OVERLAPS[-1], OVERLAPS[-1]),
            last.fg_bg_sampler.batch_size_per_image,
            last.fg_bg_sampler.positive_fraction,
            UNITS[-1],
            last.score_thresh,
            last.nms_thresh,
            last.detections_per_img,
            last.mask_roi_pool,
            last.mask_head,
            last.mask_predictor,
        )
        self.earlier = nn.ModuleList(earlier)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each picture, and in training losses by name."""
        losses, self._probabilities = {}, []
        for i, stage in enumerate(self.earlier):
            if self.training:
                proposals, _, labels, corrections = stage.select_training_samples(proposals, targets)
            logits, regression = stage.box_predictor(
                stage.box_head(stage.box_roi_pool(features, proposals, image_shapes))
            )
            if self.training:
                of_class, of_box = fastrcnn_loss(logits, regression, labels, corrections)
                losses |= {f"loss_classifier_{i}": WEIGHTS[i] * of_class, f"loss_box_reg_{i}": WEIGHTS[i] * of_box}
            logits, regression = logits.detach(), regression.detach()
            self._probabilities.append(logits.softmax(-1))
            proposals = _corrected(stage.box_coder, proposals, logits, regression, image_shapes)
        detections, last = super().forward(features, proposals, image_shapes, targets)
        for name, value in last.items():
            losses[name] = value if name == "loss_mask" else WEIGHTS[-1] * value
        return detections, losses

    def postprocess_detections(self, class_logits: Tensor, *more):
        mean = torch.stack([*self._probabilities, class_logits.softmax(-1)]).mean(0)
        return super().postprocess_detections(mean.log(), *more)  # whose softmax is the mean itself


def _corrected(
    coder: BoxCoder, proposals: list[Tensor], logits: Tensor, regression: Tensor, image_shapes: list[tuple[int, int]]
) -> list[Tensor]:
    """The boxes that a stage makes of those given, for the likeliest class of each."""
    label = logits[:, 1:].argmax(1) + 1
    boxes = coder.decode(regression, proposals)[torch.arange(len(label), device=label.device), label]
    pictures = boxes.split([len(each) for each in proposals])
    return [clip_boxes_to_image(each, shape) for each, shape in zip(pictures, image_shapes)]
