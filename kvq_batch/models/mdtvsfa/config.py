"""Sizes of the heads that are trained on several data sets."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MixedHeadConfig:
    """Sizes of a head; field names and values enter the model id.

    `data_sets` are the letters under which the published file stores the line to each scale: K KoNViD-1k, C CVD2014,
    L LIVE-Qualcomm, N LIVE-VQC.
    """

    num_features: int = 4096
    reduced: int = 128
    hidden: int = 32
    data_sets: tuple[str, ...] = ("K", "C", "L", "N")


DATA_SETS = {"K": "konvid_1k", "C": "cvd2014", "L": "live_qualcomm", "N": "live_vqc"}
"""Name of each data set as an output of the model."""
