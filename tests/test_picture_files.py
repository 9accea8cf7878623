"""Pictures as cameras, scanners and systems leave them: what every reader makes of them."""

import base64
import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from align.demo import uploads
from align.evaluation.quality import real_pictures
from align.nar.training.data import find_pictures, load_pixels
from align.runs.pictures import read_image, read_picture

UPRIGHT = np.zeros((8, 6, 3), np.uint8)
UPRIGHT[:4, :, 0] = UPRIGHT[4:, :, 2] = 255  # red over blue


def png(image, **settings):
    stream = io.BytesIO()
    image.save(stream, **({"format": "PNG"} | settings))
    return stream.getvalue()


def oriented(orientation):
    """The upright picture, stored as a camera held so stores it."""
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        6: lambda a: np.rot90(a, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    return png(Image.fromarray(np.ascontiguousarray(undo[orientation](UPRIGHT))), exif=exif)


def grey(mode):
    """A ramp of greys at the ends and in the middle, in deeper pixels, and as 8 bits."""
    levels = np.array([[0, 64, 128, 255]], np.uint8).repeat(4, 0)
    if mode == "16-bit PNG":
        return png(Image.fromarray(levels.astype(np.uint16) * 257)), levels
    if mode == "16-bit TIFF":
        return png(Image.fromarray(levels.astype(np.uint16) * 257), format="TIFF"), levels
    if mode == "32-bit TIFF":
        return png(Image.fromarray(levels.astype(np.int32) * 257), format="TIFF"), levels
    return png(Image.fromarray(levels.astype(np.float32) / 255), format="TIFF"), levels


def transparent(mode):
    """Half a picture that shows, half that does not: red, then white, whatever lies beneath."""
    if mode == "RGBA":
        pixels = np.zeros((4, 4, 4), np.uint8)
        pixels[:2] = (255, 0, 0, 255)
        return png(Image.fromarray(pixels))
    if mode == "P":
        image = Image.fromarray(np.repeat([[0], [0], [1], [1]], 4, 1).astype(np.uint8), "P")
        image.putpalette([255, 0, 0, 0, 0, 0])
        return png(image, transparency=1)
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2] = (255, 0, 0)
    return png(Image.fromarray(pixels), transparency=(0, 0, 0))


CASES = {
    **{f"orientation {n}": (oriented(n), UPRIGHT) for n in (1, 2, 3, 4, 6, 8)},
    **{
        mode: (grey(mode)[0], grey(mode)[1][..., None].repeat(3, -1))
        for mode in ("16-bit PNG", "16-bit TIFF", "32-bit TIFF", "float TIFF")
    },
    **{
        f"transparent {mode}": (
            transparent(mode),
            np.array([[[255, 0, 0]], [[255, 255, 255]]], np.uint8).repeat(2, 0).repeat(4, 1),
        )
        for mode in ("RGBA", "P", "RGB")
    },
}


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("case", CASES)
def test_every_reader_sees_what_a_viewer_shows(case, tmp_path):
    content, expected = CASES[case]
    suffix = ".tiff" if content[:2] in (b"II", b"MM") else ".png"
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    truth = torch.from_numpy(expected.copy()).permute(2, 0, 1)
    (picture,) = find_pictures(str(tmp_path))
    assert torch.equal(load_pixels(picture, truth.shape[1:]), truth)
    torch.testing.assert_close(read_image(file), truth / 255)
    (real,) = real_pictures(str(tmp_path))
    torch.testing.assert_close(real, truth / 255)
    if suffix == ".png":
        seen = uploads.picture("data:image/png;base64," + base64.b64encode(content).decode())
        assert np.array_equal(np.asarray(seen), expected)


def test_files_of_a_system_are_no_pictures(tmp_path):
    good = png(Image.fromarray(UPRIGHT))
    for name in ("a/0.png", "a/._0.png", "__MACOSX/a/0.png", ".cache/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7" if "._" in name else good)
    (picture,) = find_pictures(str(tmp_path))
    assert (picture.name, picture.label) == (str(tmp_path / "a/0.png"), "a")
    assert len(real_pictures(str(tmp_path))) == 1
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in (("./0.png", good), ("./._0.png", b"\0\5\x16\7"), ("./0.txt", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (picture,) = find_pictures(str(tmp_path / "a.tar"))
    assert picture.caption == "x"
    assert load_pixels(picture, (8, 6)).shape == (3, 8, 6)


def test_pictures_that_are_left_out_are_told(tmp_path, caplog):
    (tmp_path / "0.png").write_bytes(png(Image.fromarray(UPRIGHT)))
    (tmp_path / "IMG_1.HEIC").write_bytes(b"ftypheic")
    assert len(find_pictures(str(tmp_path))) == 1
    assert "1 pictures are left out" in caplog.text
    assert "IMG_1.HEIC" in caplog.text


@pytest.mark.parametrize("content", [b"", b"no picture", png(Image.fromarray(UPRIGHT))[:60]])
def test_what_cannot_be_read_is_named(content, tmp_path):
    file = tmp_path / "b.png"
    file.write_bytes(content)
    for read in (read_picture, read_image, lambda path: real_pictures(str(path.parent))):
        with pytest.raises(ValueError, match=r"b\.png cannot be read as a picture"):
            read(file)
    with pytest.raises(ValueError, match=r"b\.png cannot be read as a picture"):
        load_pixels(find_pictures(str(tmp_path))[0], (8, 8))
