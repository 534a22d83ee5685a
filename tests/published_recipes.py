"""What the releases publish about training, by experiment: the numbers that a configuration must have.

Learning rates are those at the published number of pictures per step. A dictionary has a value for each experiment.
Where a release does not publish a number (L2ViT's drop path for two sizes, the GPUs of NAT, DiNAT and GC ViT, VOLO's
batches for D4 and D5), it is not here.
"""

COMMON = {
    "recipe.augment.auto_augment": "rand-m9-mstd0.5-inc1",
    "recipe.augment.hflip": 0.5,
    "recipe.augment.scale": [0.08, 1.0],
    "recipe.augment.random_erasing": 0.25,
    "recipe.regularize.label_smoothing": 0.1,
    "recipe.regularize.mix_off_epochs": 0,
    "recipe.loss.name": "cross_entropy",
    "recipe.optimizer.name": "adamw",
    "recipe.optimizer.layer_decay": None,
    "recipe.optimizer.clip_mode": "norm",
}


def recipe(epochs, batch, lr, warmup, cooldown=0.0, decay=0.05, clip=None, schedule="cosine", ema=None, **more):
    """Numbers of a recipe; `epochs` with the cool-down, `warmup` in epochs with the first and the last rate."""
    warmup_epochs, warmup_lr, min_lr = warmup
    numbers = {
        "trainer.epochs": epochs,
        "recipe.reference_batch_size": batch,
        "recipe.optimizer.lr": lr,
        "recipe.optimizer.weight_decay": decay,
        "recipe.optimizer.clip_grad": clip,
        "recipe.schedule.name": schedule,
        "recipe.schedule.warmup_epochs": warmup_epochs,
        "recipe.schedule.warmup_lr": warmup_lr,
        "recipe.schedule.min_lr": min_lr,
        "recipe.schedule.cooldown_epochs": cooldown,
        "recipe.ema.decay": ema,
        "recipe.regularize.mixup": 0.8,
        "recipe.regularize.cutmix": 1.0,
        "recipe.regularize.mix_prob": 1.0,
        "recipe.regularize.switch_prob": 0.5,
        "recipe.augment.interpolation": "bicubic",
        "data.img_size": 224,
        "data.crop_pct": 0.875,
    }
    numbers |= {key.replace("__", "."): value for key, value in more.items()}
    return {key: value for key, value in numbers.items() if key != "recipe.reference_batch_size" or value is not None}


ADAM = dict(recipe__optimizer__betas=[0.9, 0.999], recipe__optimizer__eps=1e-8)
AT_384 = dict(data__img_size=384, data__crop_pct=1.0, data__crop_mode="squash")
RANDOM = dict(recipe__augment__interpolation="random")
HIDDEN = dict(recipe__schedule__warmup_prefix=False)  # the warm-up hides the beginning of the cosine
BY_EPOCH = dict(recipe__schedule__by_epoch=True)
SWIN = dict(clip=5.0, recipe__schedule__warmup_prefix=True, recipe__schedule__by_epoch=False, **ADAM)
SWIN_FT = dict(decay=1e-8, **SWIN)
LITV2 = dict(clip=5.0, recipe__optimizer__lr_multipliers={"*.offset.weight": 0.01}, **HIDDEN, **ADAM)
DINAT = dict(clip=5.0, **RANDOM, **ADAM)
NO_MIX = dict(recipe__regularize__mixup=0.0, recipe__regularize__cutmix=0.0, recipe__regularize__mix_prob=0.0)
VOLO = dict(backbone__token_labelling=True, recipe__loss__dense_weight=0.5, seed=42, **RANDOM, **HIDDEN, **BY_EPOCH)
VOLO |= dict(recipe__regularize__mixup=0.0, recipe__regularize__cutmix=0.0)
VOLO_FT = dict(decay=1e-8, recipe__loss__ground_truth=True, **VOLO)
GCVIT = dict(clip=5.0, ema=0.9998, seed=42, **RANDOM, **HIDDEN, **ADAM)
L2VIT = dict(recipe__schedule__warmup_prefix=True, trainer__precision="fp32", **ADAM)
OVERLOCK = dict(backbone__aux_head=True, recipe__loss__aux_weight=0.4, ema=0.9999, **RANDOM, **HIDDEN, **BY_EPOCH)


def drop_paths(**rates):
    return {"backbone__drop_path_rate": rates}


PUBLISHED = {
    "swin/swin_t_in1k swin/swin_s_in1k swin/swin_b_in1k": recipe(
        300, 1024, 1e-3, (20, 1e-6, 1e-5), **SWIN, **drop_paths(swin_t_in1k=0.2, swin_s_in1k=0.3, swin_b_in1k=0.5)
    ),
    "swin/swin_t_in22k swin/swin_s_in22k swin/swin_b_in22k swin/swin_l_in22k": recipe(
        *(90, 4096, 1e-3, (5, 1e-6, 1e-5)),
        **SWIN,
        **drop_paths(swin_t_in22k=0.1, swin_s_in22k=0.2, swin_b_in22k=0.2, swin_l_in22k=0.2),
    ),
    "swin/swin_t_in22k_ft_in1k swin/swin_s_in22k_ft_in1k swin/swin_b_in22k_ft_in1k swin/swin_l_in22k_ft_in1k": recipe(
        *(30, 1024, 4e-5, (5, 4e-8, 4e-7)),
        **SWIN_FT,
        **drop_paths(
            swin_t_in22k_ft_in1k=0.1, swin_s_in22k_ft_in1k=0.2, swin_b_in22k_ft_in1k=0.2, swin_l_in22k_ft_in1k=0.2
        ),
    ),
    "swin/swin_b_384_in1k swin/swin_b_384_in22k_ft_in1k swin/swin_l_384_in22k_ft_in1k": recipe(
        *(30, 1024, 4e-5, (5, 4e-8, 4e-7)),
        **SWIN_FT | AT_384,
        **drop_paths(swin_b_384_in1k=0.5, swin_b_384_in22k_ft_in1k=0.2, swin_l_384_in22k_ft_in1k=0.2),
    ),
    "litv2/litv2_s_in1k litv2/litv2_m_in1k litv2/litv2_b_in1k": recipe(
        300, 1024, 1e-3, (20, 1e-6, 1e-5), **LITV2, **drop_paths(litv2_s_in1k=0.2, litv2_m_in1k=0.3, litv2_b_in1k=0.5)
    ),
    "litv2/litv2_b_384_in1k": recipe(
        30, 1024, 4e-5, (5, 4e-8, 4e-7), decay=1e-8, backbone__drop_path_rate=0.5, **LITV2 | AT_384
    ),
    "biformer/biformer_t_in1k biformer/biformer_s_in1k biformer/biformer_b_in1k biformer/biformer_stl_in1k "
    "biformer/biformer_stl_nchw_in1k": recipe(
        *(300, 1024, 1e-3, (5, 1e-6, 1e-5)),
        ema=0.99996,
        recipe__optimizer__eps=1e-8,
        recipe__augment__repeats=3,
        **HIDDEN,
        **BY_EPOCH,
        **drop_paths(
            biformer_t_in1k=0.1,
            biformer_s_in1k=0.15,
            biformer_b_in1k=0.1,
            biformer_stl_in1k=0.1,
            biformer_stl_nchw_in1k=0.1,
        ),
    ),
    "dinat/nat_m_in1k dinat/nat_t_in1k dinat/dinat_m_in1k dinat/dinat_t_in1k dinat/dinats_t_in1k": recipe(
        310, None, 1e-3, (20, 1e-6, 5e-6), 10, backbone__drop_path_rate=0.2, **DINAT
    ),
    "dinat/nat_s_in1k dinat/dinat_s_in1k dinat/dinats_s_in1k": recipe(
        310, None, 1e-3, (20, 1e-6, 5e-6), 10, backbone__drop_path_rate=0.3, **DINAT
    ),
    "dinat/nat_b_in1k dinat/dinat_b_in1k dinat/dinats_b_in1k": recipe(
        310, None, 1e-3, (20, 1e-6, 5e-6), 10, backbone__drop_path_rate=0.5, **DINAT
    ),
    "dinat/dinat_l_in22k_ft_in1k dinat/dinats_l_in22k_ft_in1k": recipe(
        *(30, None, 5e-5, (0, 1e-6, 5e-6)),
        decay=1e-4,
        schedule="poly",
        recipe__schedule__decay_rate=1.0,
        backbone__drop_path_rate=0.35,
        trainer__batch_size=64,
        **DINAT | NO_MIX,
    ),
    "dinat/dinat_l_384_in22k_ft_in1k dinat/dinats_l_384_in22k_ft_in1k": recipe(
        *(30, None, 5e-5, (0, 1e-6, 5e-6)),
        decay=dict(dinat_l_384_in22k_ft_in1k=1e-10, dinats_l_384_in22k_ft_in1k=1e-5),
        schedule="poly",
        recipe__schedule__decay_rate=1.0,
        backbone__drop_path_rate=0.35,
        trainer__batch_size=64,
        **DINAT | NO_MIX | AT_384,
    ),
    "volo/volo_d1_in1k volo/volo_d2_in1k volo/volo_d3_in1k": recipe(
        *(310, 1024, dict(volo_d1_in1k=1.6e-3, volo_d2_in1k=1e-3, volo_d3_in1k=1e-3), (20, 1e-6, 1e-5), 10),
        data__crop_pct=0.96,
        **VOLO,
        **drop_paths(volo_d1_in1k=0.1, volo_d2_in1k=0.2, volo_d3_in1k=0.5),
    ),
    "volo/volo_d4_in1k volo/volo_d5_in1k": recipe(310, 1024, 1e-3, (20, 1e-6, 1e-5), 10, data__crop_pct=1.15, **VOLO),
    "volo/volo_d1_384_in1k volo/volo_d2_384_in1k volo/volo_d3_448_in1k": recipe(
        *(40, dict(volo_d1_384_in1k=512, volo_d2_384_in1k=384, volo_d3_448_in1k=240), 8e-6, (5, 1e-6, 4e-6), 10),
        data__img_size=dict(volo_d1_384_in1k=384, volo_d2_384_in1k=384, volo_d3_448_in1k=448),
        data__crop_pct=0.96,
        **VOLO_FT,
        **drop_paths(volo_d1_384_in1k=0.1, volo_d2_384_in1k=0.2, volo_d3_448_in1k=0.5),
    ),
    "volo/volo_d4_448_in1k volo/volo_d5_448_in1k volo/volo_d5_512_in1k": recipe(
        *(40, None, 8e-6, (5, 1e-6, 4e-6), 10),
        data__img_size=dict(volo_d4_448_in1k=448, volo_d5_448_in1k=448, volo_d5_512_in1k=512),
        data__crop_pct=1.15,
        **VOLO_FT,
    ),
    "gcvit/gcvit_xxt_in1k gcvit/gcvit_xt_in1k gcvit/gcvit_t_in1k gcvit/gcvit_t2_in1k": recipe(
        *(320, None, 5e-3, (20, 1e-6, 5e-6), 10),
        trainer__batch_size=128,
        data__crop_pct=dict(gcvit_xxt_in1k=1.0, gcvit_xt_in1k=0.875, gcvit_t_in1k=1.0, gcvit_t2_in1k=0.875),
        **GCVIT,
        **drop_paths(gcvit_xxt_in1k=0.2, gcvit_xt_in1k=0.2, gcvit_t_in1k=0.2, gcvit_t2_in1k=0.25),
    ),
    "gcvit/gcvit_s_in1k gcvit/gcvit_s2_in1k gcvit/gcvit_b_in1k gcvit/gcvit_l_in1k": recipe(
        *(320, None, 5e-3, (20, 1e-6, 5e-6), 10),
        trainer__batch_size=32,
        data__crop_pct=dict(gcvit_s_in1k=0.875, gcvit_s2_in1k=0.875, gcvit_b_in1k=1.0, gcvit_l_in1k=1.0),
        **GCVIT,
        **drop_paths(gcvit_s_in1k=0.3, gcvit_s2_in1k=0.35, gcvit_b_in1k=0.5, gcvit_l_in1k=0.5),
    ),
    "gcvit/gcvit_l_384_in1k": recipe(
        *(320, None, 1e-3, (20, 1e-6, 5e-6), 10),
        trainer__batch_size=32,
        backbone__drop_path_rate=0.1,
        **GCVIT | AT_384,
    ),
    "davit/davit_t_in1k davit/davit_s_in1k davit/davit_b_in1k": recipe(
        *(310, 1024, 1e-3, (5, 1e-6, 1e-5), 10),
        clip=1.0,
        seed=42,
        data__crop_pct=0.9,
        recipe__optimizer__eps=1e-8,
        backbone__drop_path_rate=0.1,
        **HIDDEN,
    ),
    "l2vit/l2vit_t_in1k l2vit/l2vit_s_in1k": recipe(300, 4096, 4e-3, (20, 0.0, 1e-6), ema=0.9999, **L2VIT),
    "l2vit/l2vit_b_in1k": recipe(300, 4096, 4e-3, (20, 0.0, 1e-6), ema=0.9999, backbone__drop_path_rate=0.3, **L2VIT),
    "l2vit/l2vit_b_in22k": recipe(90, 1024, 1e-3, (5, 1e-6, 1e-5), backbone__drop_path_rate=0.2, **L2VIT),
    "l2vit/l2vit_b_in22k_ft_in1k": recipe(
        30, 1024, 4e-5, (5, 4e-8, 4e-7), decay=1e-8, ema=0.9999, backbone__drop_path_rate=0.2, **L2VIT
    ),
    "l2vit/l2vit_b_384_in22k_ft_in1k": recipe(
        30, 1024, 4e-5, (5, 4e-8, 4e-7), decay=1e-8, ema=0.9999, backbone__drop_path_rate=0.2, **L2VIT | AT_384
    ),
    "overlock/overlock_xt_in1k overlock/overlock_t_in1k overlock/overlock_s_in1k overlock/overlock_b_in1k": recipe(
        *(310, 2048, 2e-3, (5, 1e-6, 1e-5), 10),
        clip=5.0,
        data__crop_pct=dict(overlock_xt_in1k=0.925, overlock_t_in1k=0.95, overlock_s_in1k=0.95, overlock_b_in1k=0.975),
        **OVERLOCK,
        **drop_paths(overlock_xt_in1k=0.1, overlock_t_in1k=0.15, overlock_s_in1k=0.4, overlock_b_in1k=0.5),
    ),
}

# Top-1 in percent that each experiment's heading names.
TOP1 = {
    "swin": dict(
        swin_t_in1k=81.2,
        swin_s_in1k=83.2,
        swin_b_in1k=83.5,
        swin_b_384_in1k=84.5,
        swin_t_in22k=80.9,
        swin_s_in22k=83.2,
        swin_b_in22k=85.2,
        swin_l_in22k=86.3,
        swin_t_in22k_ft_in1k=80.9,
        swin_s_in22k_ft_in1k=83.2,
        swin_b_in22k_ft_in1k=85.2,
        swin_l_in22k_ft_in1k=86.3,
        swin_b_384_in22k_ft_in1k=86.4,
        swin_l_384_in22k_ft_in1k=87.3,
    ),
    "litv2": dict(litv2_s_in1k=82.0, litv2_m_in1k=83.3, litv2_b_in1k=83.6, litv2_b_384_in1k=84.7),
    "biformer": dict(
        biformer_t_in1k=81.4,
        biformer_s_in1k=83.8,
        biformer_b_in1k=84.3,
        biformer_stl_in1k=82.7,
        biformer_stl_nchw_in1k=82.7,
    ),
    "dinat": dict(
        nat_m_in1k=81.8,
        nat_t_in1k=83.2,
        nat_s_in1k=83.7,
        nat_b_in1k=84.3,
        dinat_m_in1k=81.8,
        dinat_t_in1k=82.7,
        dinat_s_in1k=83.8,
        dinat_b_in1k=84.4,
        dinats_t_in1k=81.8,
        dinats_s_in1k=83.5,
        dinats_b_in1k=83.8,
        dinat_l_in22k_ft_in1k=86.6,
        dinat_l_384_in22k_ft_in1k=87.4,
        dinats_l_in22k_ft_in1k=86.5,
        dinats_l_384_in22k_ft_in1k=87.4,
    ),
    "volo": dict(
        volo_d1_in1k=84.2,
        volo_d2_in1k=85.2,
        volo_d3_in1k=85.4,
        volo_d4_in1k=85.7,
        volo_d5_in1k=86.1,
        volo_d1_384_in1k=85.2,
        volo_d2_384_in1k=86.0,
        volo_d3_448_in1k=86.3,
        volo_d4_448_in1k=86.8,
        volo_d5_448_in1k=87.0,
        volo_d5_512_in1k=87.1,
    ),
    "gcvit": dict(
        gcvit_xxt_in1k=79.9,
        gcvit_xt_in1k=82.0,
        gcvit_t_in1k=83.5,
        gcvit_t2_in1k=83.7,
        gcvit_s_in1k=84.3,
        gcvit_s2_in1k=84.8,
        gcvit_b_in1k=85.0,
        gcvit_l_in1k=85.7,
        gcvit_l_384_in1k=87.4,
    ),
    "davit": dict(davit_t_in1k=82.8, davit_s_in1k=84.2, davit_b_in1k=84.6),
    "l2vit": dict(
        l2vit_t_in1k=83.1,
        l2vit_s_in1k=84.1,
        l2vit_b_in1k=84.4,
        l2vit_b_in22k=86.0,
        l2vit_b_in22k_ft_in1k=86.0,
        l2vit_b_384_in22k_ft_in1k=87.0,
    ),
    "overlock": dict(overlock_xt_in1k=82.7, overlock_t_in1k=84.2, overlock_s_in1k=84.8, overlock_b_in1k=85.1),
}
TOP1 = {f"{family}/{name}": top1 for family, values in TOP1.items() for name, top1 in values.items()}
