"""Judging clips of moving scenes: is the object right in the frames, and does it go that way?"""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from align.scenes.motion import DIRECTIONS, FRAMES, MovingScene, parse_motion
from align.scenes.reader import read
from align.scenes.silhouettes import IMAGE_SIZE

MIN_TRAVEL = 8.0  # px at 64x64 over all frames, about half of the least true one
RIGHT_FRAMES = 0.8  # share of frames that must show the object and nothing else


@dataclass(frozen=True)
class ClipVerdict:
    """What a clip shows of its prompt."""

    frames: float
    """Share of the frames that show the stated object and nothing else."""
    direction: bool
    """Whether the object, where seen, goes the stated way."""

    @property
    def exact(self) -> bool:
        """Object right in at least four frames of five, and direction right."""
        return self.frames >= RIGHT_FRAMES and self.direction


def verify_clips(prompts: list[str], clips: Float[Tensor, "b t 3 h w"]) -> list[ClipVerdict]:
    """Judge clips in [0, 1], square and of any size; frames are read at 64x64.

    Raises ValueError for a prompt outside the grammar or another number of prompts than clips.
    """
    if clips.ndim != 5 or clips.shape[2] != 3 or clips.shape[1] < 2:
        raise ValueError(f"clips are [batch, frames, 3, height, width], got {list(clips.shape)}")
    if isinstance(prompts, str) or len(prompts) != len(clips):
        raise ValueError(f"verify_clips needs a prompt for each of {len(clips)} clips")
    return [_judge(parse_motion(p), clip) for p, clip in zip(prompts, clips, strict=True)]


def _judge(scene: MovingScene, clip: Float[Tensor, "t 3 h w"]) -> ClipVerdict:
    size = (IMAGE_SIZE, IMAGE_SIZE)
    frames = F.interpolate(clip.detach().float().cpu(), size=size, mode="bilinear")
    right, times, places = 0, [], []
    for time, frame in enumerate(frames.clamp(0, 1).numpy()):
        seen = read(frame)
        named = [o for o in seen if (o.color, o.shape) == (scene.color, scene.shape)]
        right += len(seen) == 1 and len(named) == 1
        if len(named) == 1:
            times.append(time)
            places.append((named[0].x, named[0].y))
    return ClipVerdict(right / len(frames), _goes(scene.direction, times, places, len(frames)))


def _goes(direction: str, times: list[int], places: list[tuple], count: int) -> bool:
    """Whether a straight line through the places leads that way, far enough and not askew."""
    if len(times) < max(2, FRAMES // 2):
        return False
    slopes = np.polyfit(times, np.array(places), 1)[0] * (count - 1)  # px over the clip
    dx, dy = DIRECTIONS[direction]
    along, across = slopes @ np.array([dx, dy]), abs(slopes @ np.array([dy, dx]))
    return bool(along >= MIN_TRAVEL and along > 2 * across)
