"""What the releases publish about training detectors and segmenters, by experiment.

Each has the numbers that its configuration must have, and for each backbone the drop path rate and the results: box and
mask AP, or box AP, or mIoU. Where a release does not publish a number (DaViT's drop path for larger backbones, GC ViT's
GPUs, the warm-up of OverLoCK's detectors, L2ViT's results), it is not here.
"""

SIDES = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
ADAMW = {
    "recipe.optimizer.name": "adamw",
    "recipe.optimizer.betas": [0.9, 0.999],
    "recipe.optimizer.layer_decay": None,
    "recipe.optimizer.lr_multipliers": {},
    "recipe.optimizer.clip_grad": None,
    "recipe.dense.hflip": 0.5,
    "recipe.dense.copy_paste": 0.0,
}


def detector(head, epochs, lr=1e-4, decay=0.05, crops=False, many=False, precision="fp32", warmup=500, **more):
    """Numbers of a detector; `many` sizes of pictures, and `crops` before they are resized."""
    return {
        **ADAMW,
        "task.name": "detection" if head == "retinanet" else "instance",
        "task.head": head,
        "data.name": "coco",
        "data.img_size": 800,
        "data.max_size": 1333,
        "trainer.epochs": epochs,
        "trainer.max_steps": None,
        "trainer.precision": precision,
        "recipe.reference_batch_size": 16,
        "recipe.optimizer.lr": lr,
        "recipe.optimizer.weight_decay": decay,
        "recipe.schedule.name": "multistep",
        "recipe.schedule.milestones": {12: [8, 11], 36: [27, 33]}[epochs],
        "recipe.schedule.decay_rate": 0.1,
        "recipe.schedule.warmup_steps": warmup,
        "recipe.schedule.warmup_lr": 0.001 * lr,
        "recipe.schedule.warmup_prefix": False,
        "recipe.dense.short_sides": SIDES if many or crops else None,
        "recipe.dense.first_sides": [400, 500, 600] if crops else None,
        "recipe.dense.first_crop": [384, 600] if crops else None,
        "recipe.dense.jitter": None,
        "recipe.dense.crop": None,
        "recipe.dense.photometric": 0.0,
        **more,
    }


def segmenter(decoder="upernet", steps=160_000, lr=6e-5, decay=0.01, batch=16, crop=512, precision="fp32", **more):
    """Numbers of a network for semantic segmentation."""
    numbers = {
        **ADAMW,
        "task.name": "semantic",
        "task.decoder": decoder,
        "task.aux_weight": 0.4 if decoder == "upernet" else 0.0,
        "task.dropout": 0.1,
        "data.name": "ade20k",
        "data.img_size": crop,
        "data.max_size": 4 * crop,
        "trainer.max_steps": steps,
        "trainer.precision": precision,
        "recipe.reference_batch_size": batch,
        "recipe.optimizer.lr": lr,
        "recipe.optimizer.weight_decay": decay,
        "recipe.schedule.name": "poly",
        "recipe.schedule.decay_rate": 1.0,
        "recipe.schedule.warmup_steps": 1500,
        "recipe.schedule.warmup_lr": 1e-6 * lr,
        "recipe.schedule.warmup_prefix": False,
        "recipe.schedule.min_lr": 0.0,
        "recipe.dense.short_sides": None,
        "recipe.dense.first_sides": None,
        "recipe.dense.jitter": [0.5, 2.0],
        "recipe.dense.crop": [crop, crop],
        "recipe.dense.max_class_share": 0.75,
        "recipe.dense.photometric": 1.0,
        **more,
    }
    if not numbers["recipe.schedule.warmup_steps"]:
        del numbers["recipe.schedule.warmup_lr"]
    return numbers


MASK, CASCADE, RETINA = "mask_rcnn", "cascade_mask_rcnn", "retinanet"
FP16 = dict(precision="fp16")
LITV2_FPN = {"recipe.schedule.decay_rate": 0.9, "recipe.schedule.warmup_steps": 0, "recipe.schedule.min_lr": 1e-6}
BIFORMER_FPN = {
    "recipe.schedule.name": "cosine",
    "recipe.schedule.warmup_steps": 1000,
    "recipe.schedule.warmup_lr": 0.1 * 2e-4,
    "recipe.schedule.min_lr": 1e-8 * 2e-4,
}
# DiNAT's cascades with another rate or precision than the others.
SLOWER = {"recipe.optimizer.lr": 7.5e-5}
LARGE = SLOWER | {"trainer.precision": "fp32"}

# Experiment: its numbers, and by backbone the drop path rate and the results, and perhaps other numbers. In LITv2, "w4"
# stands for windows of 4 tokens in the third stage.
PUBLISHED = {
    "swin/swin_mask_rcnn_1x": (detector(MASK, 12, crops=True, **FP16), {"swin_t": (0.1, 43.7, 39.8)}),
    "swin/swin_mask_rcnn_3x": (
        detector(MASK, 36, crops=True, **FP16),
        {"swin_t": (0.2, 46.0, 41.6), "swin_s": (0.2, 48.5, 43.3)},
    ),
    "swin/swin_cascade_mask_rcnn_1x": (detector(CASCADE, 12, crops=True, **FP16), {"swin_t": (0.0, 48.1, 41.7)}),
    "swin/swin_cascade_mask_rcnn_3x": (
        detector(CASCADE, 36, crops=True, **FP16),
        {"swin_t": (0.2, 50.4, 43.7), "swin_s": (0.2, 51.9, 45.0), "swin_b": (0.3, 51.9, 45.0)},
    ),
    "swin/swin_upernet_160k": (
        segmenter(),
        {"swin_t": (0.3, 44.51), "swin_s": (0.3, 47.64), "swin_b": (0.3, 48.13)},
    ),
    "litv2/litv2_mask_rcnn_1x": (
        detector(MASK, 12, lr=2e-4, decay=1e-4, **FP16),
        {
            "litv2_s": (0.2, 44.9, 40.8),
            "litv2_s w4": (0.2, 44.7, 40.7),
            "litv2_m": (0.2, 46.8, 42.3),
            "litv2_m w4": (0.2, 46.5, 42.0),
            "litv2_b": (0.3, 47.3, 42.6),
            "litv2_b w4": (0.3, 46.8, 42.3),
        },
    ),
    "litv2/litv2_retinanet_1x": (
        detector(RETINA, 12, decay=1e-4, **FP16),
        {
            "litv2_s": (0.2, 44.0),
            "litv2_s w4": (0.2, 43.7),
            "litv2_m": (0.2, 46.0),
            "litv2_m w4": (0.2, 45.8),
            "litv2_b": (0.3, 46.7),
            "litv2_b w4": (0.3, 46.3),
        },
    ),
    "litv2/litv2_fpn_80k": (
        segmenter("fpn", 80_000, 1e-4, 1e-4, **LITV2_FPN),
        {"litv2_s": (0.2, 44.3), "litv2_m": (0.2, 45.7), "litv2_b": (0.3, 47.2)},
    ),
    "biformer/biformer_mask_rcnn_1x": (
        detector(MASK, 12, **FP16),
        {"biformer_s": (0.2, 47.8, 43.2), "biformer_b": (0.3, 48.6, 43.7)},
    ),
    "biformer/biformer_retinanet_1x": (
        detector(RETINA, 12, decay=1e-4, **FP16),
        {"biformer_s": (0.2, 45.9), "biformer_b": (0.3, 47.1)},
    ),
    "biformer/biformer_upernet_160k": (
        segmenter(**FP16),
        {"biformer_s": (0.3, 49.8), "biformer_b": (0.4, 51.0)},
    ),
    "biformer/biformer_fpn_80k": (
        segmenter("fpn", 80_000, 2e-4, 1e-4, batch=32, **FP16, **BIFORMER_FPN),
        {"biformer_s": (0.15, 48.9), "biformer_b": (0.3, 49.9)},
    ),
    "dinat/dinat_mask_rcnn_3x": (
        detector(MASK, 36, crops=True, **FP16),
        {
            "nat_m": (0.2, 46.5, 41.7),
            "nat_t": (0.2, 47.7, 42.6),
            "nat_s": (0.35, 48.4, 43.2),
            "dinat_m": (0.2, 47.2, 42.5),
            "dinat_t": (0.2, 48.6, 43.5),
            "dinat_s": (0.35, 49.3, 44.0),
            "dinats_t": (0.2, 46.6, 42.1),
            "dinats_s": (0.35, 48.6, 43.5),
        },
    ),
    "dinat/dinat_cascade_mask_rcnn_3x": (
        detector(CASCADE, 36, crops=True, **FP16),
        {
            "nat_m": (0.2, 50.3, 43.6),
            "nat_t": (0.3, 51.4, 44.5),
            "nat_s": (0.3, 52.0, 44.9),
            "nat_b": (0.5, 52.3, 45.1),
            "dinat_m": (0.2, 51.2, 44.4),
            "dinat_t": (0.3, 52.2, 45.1),
            "dinat_s": (0.5, 52.9, 45.8),
            "dinat_b": (0.6, 53.4, 46.2, SLOWER),
            "dinat_l": (0.6, 55.3, 47.8, LARGE),
            "dinats_t": (0.3, 51.0, 44.1),
            "dinats_s": (0.5, 52.3, 45.2),
            "dinats_b": (0.6, 52.6, 45.3, SLOWER),
            "dinats_l": (0.6, 54.8, 47.2, {"recipe.optimizer.lr": 5e-5}),
        },
    ),
    "dinat/dinat_upernet_160k": (
        segmenter(),
        {
            "nat_m": (0.2, 45.1),
            "nat_t": (0.3, 47.1),
            "nat_s": (0.5, 48.0),
            "nat_b": (0.5, 48.5),
            "dinat_m": (0.2, 45.8),
            "dinat_t": (0.3, 47.8),
            "dinat_s": (0.5, 48.9),
            "dinat_b": (0.5, 49.6),
            "dinats_t": (0.3, 46.0),
            "dinats_s": (0.3, 48.6),
            "dinats_b": (0.3, 49.4),
        },
    ),
    "dinat/dinat_l_upernet_640_160k": (segmenter(crop=640), {"dinat_l": (0.3, 54.0), "dinats_l": (0.3, 53.4)}),
    "gcvit/gcvit_mask_rcnn_3x": (
        detector(MASK, 36, crops=True, warmup=2500, **FP16),
        {"gcvit_t": (0.2, 47.9, 43.2)},
    ),
    "gcvit/gcvit_cascade_mask_rcnn_3x": (
        detector(CASCADE, 36, crops=True, warmup=2500),
        {"gcvit_t": (0.2, 51.6, 44.6)},
    ),
    "davit/davit_mask_rcnn_1x": (detector(MASK, 12, crops=True), {"davit_t": (0.1, 45.0, 41.1)}),
    "davit/davit_mask_rcnn_3x": (detector(MASK, 36, crops=True), {"davit_t": (0.2, 47.4, 42.9)}),
    "davit/davit_retinanet_1x": (detector(RETINA, 12, crops=True), {"davit_t": (0.1, 44.0)}),
    "davit/davit_retinanet_3x": (detector(RETINA, 36, crops=True), {"davit_t": (0.2, 46.5)}),
    "davit/davit_upernet_160k": (segmenter(), {"davit_t": (0.3, 46.3)}),
    "l2vit/l2vit_mask_rcnn_1x": (
        detector(MASK, 12, crops=True),
        {"l2vit_t": (0.1,), "l2vit_s": (0.1,), "l2vit_b": (0.2,)},
    ),
    "l2vit/l2vit_mask_rcnn_3x": (
        detector(MASK, 36, crops=True),
        {"l2vit_t": (0.2,), "l2vit_s": (0.2,), "l2vit_b": (0.3,)},
    ),
    "l2vit/l2vit_retinanet_1x": (
        detector(RETINA, 12, crops=True),
        {"l2vit_t": (0.1,), "l2vit_s": (0.1,), "l2vit_b": (0.2,)},
    ),
    "l2vit/l2vit_retinanet_3x": (
        detector(RETINA, 36, crops=True),
        {"l2vit_t": (0.2,), "l2vit_s": (0.2,), "l2vit_b": (0.3,)},
    ),
    "l2vit/l2vit_upernet_160k": (segmenter(), {"l2vit_t": (0.3,), "l2vit_s": (0.3,), "l2vit_b": (0.3,)}),
    "overlock/overlock_mask_rcnn_1x": (
        detector(MASK, 12, lr=2e-4),
        {"overlock_t": (0.2, 48.3, 43.3), "overlock_s": (0.4, 49.4, 44.0), "overlock_b": (0.6, 49.9, 44.4)},
    ),
    "overlock/overlock_mask_rcnn_3x": (
        detector(MASK, 36, crops=True),
        {"overlock_t": (0.2, 49.6, 43.9), "overlock_s": (0.4, 51.0, 45.0), "overlock_b": (0.6, 51.4, 45.3)},
    ),
    "overlock/overlock_upernet_160k": (
        segmenter(),
        {"overlock_t": (0.2, 50.3), "overlock_s": (0.3, 51.3), "overlock_b": (0.5, 51.7)},
    ),
}

# Recipes for any backbone: no release, but a paper or a toolbox says how.
GENERAL = {
    "mask_rcnn_1x": detector(MASK, 12),
    "mask_rcnn_3x_ms": detector(MASK, 36, many=True),
    "retinanet_1x": detector(RETINA, 12, decay=1e-4),
    "upernet_160k": segmenter(),
    "linear_probe_seg": segmenter(
        *("linear", 40_000, 1e-3, 1e-4), **{"task.frozen_stages": 4, "task.dropout": 0.0, "task.aux_weight": 0.0}
    ),
    "mask2former_50e": {
        "task.name": "instance",
        "task.head": "mask2former",
        "data.name": "coco",
        "data.img_size": 800,
        "data.max_size": 1333,
        "trainer.epochs": 50,
        "recipe.reference_batch_size": 16,
        "recipe.optimizer.lr": 1e-4,
        "recipe.optimizer.weight_decay": 0.05,
        "recipe.optimizer.clip_grad": 0.01,
        "recipe.optimizer.clip_mode": "norm",
        "recipe.schedule.name": "multistep",
        "recipe.schedule.milestones": [0.9 * 50, 0.95 * 50],
        "recipe.schedule.decay_rate": 0.1,
        "recipe.schedule.warmup_epochs": 0,
        "recipe.schedule.warmup_steps": None,
        "recipe.dense.short_sides": [1024],
        "recipe.dense.max_size": 1024,
        "recipe.dense.jitter": [0.1, 2.0],
        "recipe.dense.crop": [1024, 1024],
        "recipe.dense.hflip": 0.5,
    },
}
