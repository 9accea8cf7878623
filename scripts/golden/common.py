"""What every reference needs: pictures, token ids, weights from the formula."""

import importlib.util
import json
import sys
import types
import warnings
from pathlib import Path

import torch
from PIL import Image

TESTS = Path(__file__).parents[2] / "tests"
GOLDEN = TESTS / "golden" / "rewards"
sys.path.insert(0, str(TESTS))
warnings.filterwarnings("ignore")

from formula import pictures, weights  # noqa: E402

IN = json.loads((GOLDEN / "inputs.json").read_text())
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def bare(*names: str) -> None:
    """Make packages importable without running their `__init__`."""
    for name in names:
        parent, _, last = name.rpartition(".")
        package = types.ModuleType(name)
        if parent:
            package.__path__ = [str(Path(sys.modules[parent].__path__[0]) / last)]
        else:
            package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
        sys.modules[name] = package


def small(size: int = 32) -> torch.Tensor:
    return pictures(2, size, size)


def large() -> list[Image.Image]:
    """Pictures of bytes, 40 high and 57 wide."""
    data = (pictures(2, 40, 57) * 255).round().byte()
    return [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in data]


def ids(rows: list[list[int]], fill: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def load(model: torch.nn.Module) -> dict:
    """Fill a reference's module by the formula; the shapes of its keys, tied ones by one key."""
    state = model.state_dict()
    made = weights({key: list(value.shape) for key, value in state.items()})
    first: dict[int, str] = {}
    for key, value in state.items():
        name = first.setdefault(value.data_ptr(), key)
        made[key] = made[name] if value.is_floating_point() else value
    model.load_state_dict(made)
    model.eval()
    kept = set(first.values())
    return {key: list(value.shape) for key, value in state.items() if key in kept}


def clip_pixels() -> torch.Tensor:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    return processor(large(), return_tensors="pt").pixel_values
