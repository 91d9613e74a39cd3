import pytest
import torch
from PIL import Image

from latentdiff.evaluation.animation import LAST_MILLISECONDS, MILLISECONDS, save_animation


def test_frames_are_grids_in_order_without_loss(tmp_path):
    frames = torch.randint(0, 256, (3, 2, 3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    save_animation(tmp_path / "new" / "moving.png", frames, columns=2, scale=2, pad=1)
    with Image.open(tmp_path / "new" / "moving.png") as moving:
        assert (moving.n_frames, moving.size, moving.info["loop"]) == (3, (2 * 10 + 3, 8 + 2), 0)
        for i, frame in enumerate(frames):
            moving.seek(i)
            shown = torch.tensor(list(moving.convert("RGB").getdata()), dtype=torch.uint8).view(10, 23, 3)
            assert torch.equal(shown[1:9:2, 1:11:2].permute(2, 0, 1), frame[0])
            assert torch.equal(shown[1:9:2, 12:22:2].permute(2, 0, 1), frame[1])
            assert moving.info["duration"] == (LAST_MILLISECONDS if i == 2 else MILLISECONDS)


def test_still_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="T >= 1"):
        save_animation(tmp_path / "a.png", torch.zeros(0, 1, 3, 4, 4, dtype=torch.uint8), columns=1)
