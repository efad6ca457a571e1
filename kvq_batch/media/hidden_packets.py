"""Packets that are not one shown frame each: pictures that are only referred to, and pictures without data."""

from av.packet import Packet
from av.video.stream import VideoStream

_VOP = b"\x00\x00\x01\xb6"
# Enough for the start of a VOP up to `vop_coded`, with up to 100 seconds between frames.
_VOP_HEADER_BYTES = 20


def is_hidden(codec: str, packet: "Packet[VideoStream]") -> bool:
    """Return True for a VP8 or VP9 packet that shows nothing and only updates references (RFC 6386 9.1; VP9 6.2)."""
    first = bytes(packet)[:1]
    if codec == "vp8":
        return not first[0] >> 4 & 1
    if codec != "vp9" or first[0] >> 6 != 2 or bytes(packet)[-1] & 0xE0 == 0xC0:
        return False
    shift = 1 if first[0] >> 4 & 3 == 3 else 0
    shows_existing = first[0] >> (3 - shift) & 1
    return not shows_existing and not first[0] >> (1 - shift) & 1


class VopParser:
    """Parser of MPEG-4 part 2 packets (ISO/IEC 14496-2, 6.2.3 and 6.2.5) for one stream.

    Encoders write a picture ("VOP") without data where a frame repeats the one before. A decoder returns nothing for
    it. The packed bitstream of DivX has two pictures in one packet, and an empty one later.
    """

    def __init__(self, extradata: bytes) -> None:
        self._num_time_bits = _num_time_bits(extradata)

    def is_one_frame(self, packet: bytes) -> bool:
        """Return whether the packet has exactly one picture, with data; True if the stream has no header."""
        at = packet.find(_VOP)
        if at < 0 or self._num_time_bits is None:
            return True
        if packet.find(_VOP, at + 4) >= 0:
            return False
        bits = _BitReader(packet[at + 4 : at + 4 + _VOP_HEADER_BYTES])
        bits.read(2)  # vop_coding_type
        while bits.read(1):  # modulo_time_base
            pass
        bits.read(1 + self._num_time_bits + 1)  # marker, vop_time_increment, marker
        return bits.read(1) == 1  # vop_coded


def _num_time_bits(extradata: bytes) -> int | None:
    """Return the length of `vop_time_increment`; None without the header of a video object layer."""
    starts = (at for at in range(len(extradata) - 3) if extradata[at : at + 3] == b"\x00\x00\x01")
    at = next((at for at in starts if extradata[at + 3] >> 4 == 2), None)
    if at is None:
        return None
    bits = _BitReader(extradata[at + 4 :])
    bits.read(1 + 8)  # random_accessible_vol, video_object_type_indication
    if bits.read(1):  # is_object_layer_identifier
        bits.read(4 + 3)
    if bits.read(4) == 15:  # aspect_ratio_info: extended
        bits.read(8 + 8)
    if bits.read(1):  # vol_control_parameters
        bits.read(2 + 1)
        if bits.read(1):  # vbv_parameters
            bits.read(79)
    bits.read(2 + 1)  # video_object_layer_shape, marker
    return max(1, (bits.read(16) - 1).bit_length())  # from vop_time_increment_resolution


class _BitReader:
    """Reads numbers of some bits, most significant first. Zeros follow the end."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._at = 0

    def read(self, count: int) -> int:
        """Return the next `count` bits as a number."""
        self._at += count
        return int(self._bits[self._at - count : self._at] or "0", 2)
