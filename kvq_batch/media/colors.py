"""ffmpeg's names of colour numbers (ITU-T H.273), because rows must be readable and the numbers are not.

Only names: no pixel is converted here.
"""

_PRIMARIES = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020", 10: "smpte428",
    11: "smpte431", 12: "smpte432", 22: "ebu3213",
}  # fmt: skip
_TRANSFERS = {
    1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear", 9: "log100", 10: "log316",
    11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084",
    17: "smpte428", 18: "arib-std-b67",
}  # fmt: skip
_MATRICES = {
    0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco", 9: "bt2020nc",
    10: "bt2020c", 11: "smpte2085", 12: "chroma-derived-nc", 13: "chroma-derived-c", 14: "ictcp",
}  # fmt: skip
_RANGES = {1: "tv", 2: "pc"}
_FIELD_ORDERS = {1: "progressive", 2: "tt", 3: "bb", 4: "tb", 5: "bt"}

HDR_TRANSFERS = {"smpte2084": "PQ", "arib-std-b67": "HLG"}


def primaries_name(number: int) -> str:
    return _PRIMARIES.get(number, "unknown")


def transfer_name(number: int) -> str:
    return _TRANSFERS.get(number, "unknown")


def matrix_name(number: int, pixel_format: str) -> str:
    """The matrix; 0 is RGB only where the pixels are RGB, and is left over from an unset field elsewhere."""
    if number == 0 and "yuv" in pixel_format:
        return "unknown"
    return _MATRICES.get(number, "unknown")


def range_name(number: int, pixel_format: str) -> str:
    if pixel_format.startswith("yuvj"):
        return "pc"
    return _RANGES.get(number, "unknown")


def field_order_name(number: int) -> str:
    return _FIELD_ORDERS.get(number, "unknown")
