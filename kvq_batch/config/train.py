"""The training job: a frozen, fully checked description of a training, read from one TOML file."""

from typing import Literal

from pydantic import Field, model_validator

from kvq_batch.config.job import Limits, Storage, Uri
from kvq_batch.config.section import Section
from kvq_batch.domain.scorer import Device


class TrainData(Section):
    """Videos and their labels."""

    videos: Uri = Field(description="Folder, prefix or glob of the videos, or a catalog file of them.")
    labels: Uri = Field(
        description="List of labels: four fields a line (file, -1, -1, mos), or .csv, .parquet, .jsonl with columns."
    )
    scale: tuple[float, float] = Field(
        description="Lowest and highest label that the study allows; a label outside is refused.", examples=[[0, 100]]
    )
    id_column: str | None = Field(None, description="Column that names the video. Default: video_id, file, name, ...")
    label_column: str | None = Field(None, description="Column with the label. Default: mos, label, vmaf, ...")
    scene_column: str | None = Field(
        None,
        description="Column that names the scene that renditions share, so that a scene is in one split. "
        "Default: scene_id if there is one, else every video is its own scene.",
        examples=["scene_id"],
    )
    split_column: str | None = Field(
        None,
        description='Column with "train" or "validation"; rows that say "test" are left alone. Default: split if there '
        "is one, else training.validation_share of the scenes is held out.",
        examples=["split"],
    )
    cells_column: str | None = Field(
        None,
        description="Column with a .npy file a video, float32 [slots, rows, columns]: labels of the texture map's "
        "cells, in the labels' scale, NaN where there is none. Relative paths start at the list.",
        examples=["cells"],
    )
    views: int = Field(
        1,
        ge=1,
        description="Clips drawn of each video: the first as for scoring, the others at random places.",
    )
    frames: str | None = Field(
        None,
        description="Folder of the decoded frames, kept between trainings. Default: frames, below `out`.",
        examples=["/mnt/scratch/frames"],
    )
    decoders: int = Field(2, ge=1, description="Videos that are decoded at a time.")


class TrainViews(Section):
    """What a step sees of a video. Without `slots`: one of the whole clips that `data.views` keeps."""

    slots: int | None = Field(
        None,
        ge=1,
        description="Keep this many slots of each video at its own size, and draw one of them for every step, its "
        "fragments at random places. For videos of a label job: needs cells_column, and all of one length.",
        examples=[2],
    )
    mix: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of views in which rectangles show another version of the same frames.",
    )
    mix_column: str = Field("segment", description="Column that names the frames that renditions share.")
    flip: bool = Field(True, description="Mirror half of the views each way; turn half of them where they are square.")
    contrast: float = Field(
        1.0,
        ge=1,
        le=4,
        description="Change contrast by chance, by at most this factor either way, and where it is not 1 colours too.",
        examples=[1.6],
    )

    @model_validator(mode="after")
    def _is_of_slots(self) -> "TrainViews":
        if self.mix and self.slots is None:
            raise ValueError("mix needs slots: whole clips are not mixed")
        return self


class TrainModel(Section):
    """Sizes of the network, and the weights that it starts from."""

    preset: Literal["published", "tiny"] = Field(
        "published", description='Sizes: "published", or "tiny", the small member that the demo runs.'
    )
    embed_dim: int | None = Field(None, description="Channels of the first stage. Default: the preset's, as below.")
    depths: tuple[int, ...] | None = Field(None, description="Blocks of each stage.", examples=[[2, 2, 6, 2]])
    num_heads: tuple[int, ...] | None = Field(None, description="Heads of each stage.", examples=[[3, 6, 12, 24]])
    top_k: tuple[int, ...] | None = Field(
        None, description="Windows that fusion attention selects, 0 for a plain stage.", examples=[[0, 0, 8, 4]]
    )
    patch: tuple[int, int, int] | None = Field(None, description="Patch: frames, rows, columns.", examples=[[2, 4, 4]])
    window: tuple[int, int, int] | None = Field(None, description="Window, in tokens.", examples=[[8, 7, 7]])
    mlp_ratio: int | None = Field(None, description="Width of the hidden layers of the blocks.", examples=[4])
    head_hidden: int | None = Field(None, description="Width of the hidden layer of the heads.", examples=[64])
    num_frames: int | None = Field(None, description="Frames of a clip, a multiple of num_segments.", examples=[32])
    num_segments: int | None = Field(None, description="Segments of a video that they come from.", examples=[8])
    input_size: tuple[int, int] | None = Field(None, description="Height and width in pixels.", examples=[[448, 448]])
    num_bands: int | None = Field(None, description="Bands of detail beside RGB at the input.", examples=[2])
    statistics: int | None = Field(
        None, ge=0, le=1, description="1: tokens are made of statistics of their patches.", examples=[1]
    )
    stem_width: int | None = Field(
        None, description="Channels of a convolutional stem in place of the patch embedding.", examples=[24]
    )
    fragments: tuple[int, int] | None = Field(
        None, description="Rows and columns of native patches in place of resized frames.", examples=[[7, 7]]
    )
    initialisation: Literal["published", "fan-in"] = Field(
        "published", description='How weights are drawn: "published" (0.02), or "fan-in", better for small members.'
    )
    start: str | None = Field(
        None, description="Checkpoint to go on from: KVQ.pth, or a .safetensors of ours.", examples=["KVQ.pth"]
    )
    kinetics: str | None = Field(
        None,
        description="Video-Swin file trained on Kinetics-400, as the start of the backbone.",
        examples=["swin_tiny_patch244_window877_kinetics400_1k.pth"],
    )

    slot_by_slot: int | None = Field(
        None, ge=0, le=1, description="1: every slot by itself, as views of single slots are.", examples=[1]
    )

    @model_validator(mode="after")
    def _one_start(self) -> "TrainModel":
        if self.start is not None and self.kinetics is not None:
            raise ValueError("start and kinetics exclude each other: a checkpoint has a backbone already")
        return self


class TrainLoss(Section):
    """What each term of the loss counts; 0 leaves it out."""

    plcc: float = Field(1.0, ge=0, description="Distance from a line through the labels.")
    rank: float = Field(0.5, ge=0, description="Pairs in the wrong order.")
    lpc: float = Field(0.02, ge=0, description="Agreement of the texture map with cubes seen alone; 0.05 in the paper.")
    score: float = Field(0.0, ge=0, description="Absolute error of scores, with the labels' scale as 0 to 1.")
    cells: float = Field(0.0, ge=0, description="Absolute error of labelled cells of the texture map, likewise.")
    pairs: float = Field(
        0.0, ge=0, description="Absolute error of differences between renditions of the same frames; needs renditions."
    )
    cube: tuple[int, int, int] = Field(
        (2, 32, 32),
        description="Cubes of lpc: frames, rows, columns; [2, 32, 32] in the code, [2, 28, 28] in the paper.",
    )


class TrainOptimiser(Section):
    """AdamW."""

    learning_rate: float = Field(5e-4, gt=0, description="Rate at its highest.")
    backbone_factor: float = Field(0.1, gt=0, description="What the rate of the backbone is multiplied by.")
    weight_decay: float = Field(0.05, ge=0, description="Decay of every tensor.")
    warmup_steps: int = Field(0, ge=0, description="Steps until the rate is at its highest; a cosine follows.")
    clip_norm: float | None = Field(None, gt=0, description="Bound of the gradient's norm.", examples=[1.0])
    ema_decay: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="Decay of the averaged weights, which are validated and kept. 0: the last ones.",
    )


class Training(Section):
    """How long, on how much at a time, and what is held out."""

    steps: int = Field(ge=1, description="Steps of the training.", examples=[20000])
    batch_size: int = Field(8, ge=2, description="Clips of a step, of all processes together.")
    renditions: int = Field(
        1,
        ge=1,
        description="Consecutive clips of a batch that are renditions of the same frames (by views.mix_column), "
        "seen at the same places: what differs between them is then the degradation alone.",
        examples=[4],
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout in the heads.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description='"fp32", or "bf16": products in half precision.')
    seed: int = Field(0, ge=0, description="Everything that is drawn follows from it.")
    validation_share: float = Field(0.1, ge=0, lt=1, description="Share of the scenes that is held out.")
    validate_every: int = Field(500, ge=1, description="Steps between validations; the best weights are kept.")
    patience: int | None = Field(
        None, ge=1, description="Stop after this many validations without a better one.", examples=[10]
    )


class TrainMachine(Section):
    """Where it runs. Nothing here changes the weights that come out, but for rounding."""

    device: Device = Field("cpu", description='"cpu" or "cuda".')
    workers: int = Field(1, ge=1, description="Processes that train together, by Ray Train; one needs no Ray.")
    num_threads: int | None = Field(None, ge=1, description="CPU threads of a process.", examples=[8])
    recompute: bool = Field(False, description="Compute blocks again rather than keep them: less memory, more time.")
    checkpoint_every: int = Field(100, ge=1, description="Steps that a crash may cost.")
    ray_address: str | None = Field(
        None, description="Ray cluster for several workers. Default: a local Ray.", examples=["auto"]
    )


class TrainJob(Section):
    """Labelled videos, a network, and the checkpoint that comes out."""

    name: str = Field(pattern=r"^[a-z0-9._-]+$", description="Name of the model, as written in every row.")
    version: str = Field(pattern=r"^[a-z0-9._-]+$", description="Version of the model.", examples=["1"])
    out: str = Field(min_length=1, description="Folder of this training: state, curves, checkpoint.")
    summary: str = Field("", description="One line about the model, for its card.")
    training_data: str = Field(min_length=1, description="What it was trained on, for its card.")
    licence: str = Field("", description="Licence of the weights, for its card.")
    data: TrainData
    views: TrainViews = Field(TrainViews(), description="What a step sees of a video.")
    model: TrainModel = Field(TrainModel(), description="The network.")
    loss: TrainLoss = Field(TrainLoss(), description="The loss.")
    optimiser: TrainOptimiser = Field(TrainOptimiser(), description="The optimiser.")
    training: Training
    machine: TrainMachine = Field(TrainMachine(), description="Where it runs.")
    limits: Limits = Field(Limits(), description="What decoding one video may cost.")
    storage: Storage = Field(Storage(), description="Object storage.")

    @model_validator(mode="after")
    def _slots_have_labels(self) -> "TrainJob":
        if self.views.slots is not None:
            if self.data.cells_column is None:
                raise ValueError("views.slots needs data.cells_column: a slot's label is that of its cells")
            if not self.model.slot_by_slot:
                raise ValueError("views.slots needs model.slot_by_slot = 1: else clips are scored by another network")
            if self.data.views != 1:
                raise ValueError("views.slots and data.views exclude each other: views are drawn from the slots")
        return self
