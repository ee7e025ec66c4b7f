"""Folders of images: what comes out, as Keras and Pillow have it, what is left out, what is refused."""

import keras
import numpy as np
import pytest
from PIL import Image

from trainer.data.opening import Places, open_data
from trainer.data.records import load
from trainer.data.source import Split
from trainer.data.sources.image_files import head_of
from trainer.errors import UserError


def refused(text, bad="refuse"):
    with pytest.raises(UserError) as error:
        open_data(str(text), Places(), bad)
    return str(error.value)


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(0, 256, (20 + 7 * i, 30 - 3 * i, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("crop", [False, True])
def test_images_as_keras_reads_them(photos, crop):
    source = open_data(f"{photos}(size=16, crop={crop})", Places())
    assert source.sizes() == {"train": 8, "test": 8} and source.classes == ("cat", "dog")
    theirs = keras.utils.image_dataset_from_directory(
        photos / "train",
        image_size=(16, 16),
        shuffle=False,
        batch_size=8,
        crop_to_aspect_ratio=crop,
        verbose=False,
    )
    ((images, labels),) = list(theirs)
    found = load(Split(source, "train"))
    np.testing.assert_array_equal(found["label"], labels)
    np.testing.assert_array_equal(found["image"], np.round(images))
    assert ("cropped" if crop else "squeezed") in " ".join(source.notes)


def test_jpegs_of_one_size_need_none(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (9, 7), 100).save(tmp_path / name / "x.JPG", "JPEG")
    source = open_data(str(tmp_path), Places())
    assert source.sizes() == {"train": 2} and source.spec()["image"].shape == [7, 9, 3]


def test_images_that_are_refused(photos):
    assert "sizes, from 20x30 to 41x21" in refused(photos)
    assert "size=0 is not a number of pixels" in refused(f"{photos}(size=0)")
    assert "there is no argument sice" in refused(f"{photos}(sice=8)")
    whole = (photos / "train/cat/0.png").read_bytes()
    (photos / "train/cat/1.png").write_bytes(whole[:-30])
    (photos / "train/dog/2.png").write_bytes(b"")
    said = refused(f"{photos}(size=8)")
    assert (
        "2 of 16 images cannot be read" in said and "train/cat/1.png (cut off)" in said and "(empty)" in said
    )
    source = open_data(f"{photos}(size=8)", Places(), "skip")
    assert source.sizes()["train"] == 6 and "2 of 16 images are left out" in source.notes[0]
    (photos / "train/Cat").mkdir()
    (photos / "train/Cat/1.png").write_bytes(whole)
    assert "'Cat' and 'cat' differ by case" in refused(f"{photos}(size=8)", "skip")
    (photos / "empty").mkdir()
    assert "the folder is empty" in refused(photos / "empty")


PIXELS = np.random.default_rng(1).integers(0, 256, (8, 6, 3), np.uint8)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_colours_as_pillow_has_them(tmp_path, mode):
    """Whatever a PNG stores comes out as three bytes; what can be seen through is taken as it is."""
    (tmp_path / "a").mkdir()
    image = Image.fromarray(PIXELS).convert(mode)
    image.save(tmp_path / "a/x.png")
    found = load(Split(open_data(str(tmp_path), Places()), "train"))["image"][0]
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


def test_sixteen_bits_and_four_inks(tmp_path):
    (tmp_path / "a").mkdir()
    deep = (np.arange(48, dtype=np.uint16) * 1000).reshape(8, 6)
    Image.fromarray(deep).save(tmp_path / "a/deep.png")
    smooth = np.repeat(np.linspace(0, 250, 48).astype(np.uint8).reshape(8, 6, 1), 3, 2)
    Image.fromarray(smooth).convert("CMYK").save(tmp_path / "a/inks.jpg", quality=100)
    found = load(Split(open_data(str(tmp_path), Places()), "train"))["image"]
    np.testing.assert_array_equal(found[0], np.repeat((deep >> 8)[..., None], 3, 2))
    assert np.abs(found[1].astype(int) - smooth).max() <= 12


def test_what_is_left_out_is_said(photos):
    for hidden in ("train/.ipynb_checkpoints/0.png", "train/cat/._0.png"):
        (photos / hidden).parent.mkdir(exist_ok=True)
        (photos / hidden).write_bytes(b"no image")
    (photos / "train/cat/notes.txt").write_text("")
    Image.fromarray(PIXELS).save(photos / "train/cat/9.webp")
    (photos / "train/empty").mkdir()
    (photos / "test/fox").mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(PIXELS).save(photos / "test/fox/0.jpg", exif=turned)
    source = open_data(f"{photos}(size=8)", Places())
    assert source.sizes() == {"train": 8, "test": 9} and source.classes == ("cat", "dog", "fox")
    said = " ".join(source.notes)
    assert "left out, 1 *.webp, 1 *.txt: train/cat/9.webp, train/cat/notes.txt" in said
    assert (
        "A folder without an image is no class: train/empty." in said and "train has no image of fox" in said
    )
    assert "1 images carry a camera's note (EXIF)" in said and "test/fox/0.jpg" in said


def test_folders_without_a_level_of_classes(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(PIXELS).save(tmp_path / split / "0.png")
    said = refused(tmp_path)
    assert "test, train would be the classes" in said and f"{tmp_path}/SPLIT/CLASS/" in said
    assert "no image as CLASS/FILE" in refused(tmp_path / "train")


def test_heads_of_files(tmp_path):
    file = tmp_path / "x.jpg"
    thumbnail = tmp_path / "small.jpg"
    Image.fromarray(PIXELS[:4]).save(thumbnail)
    exif = b"Exif\0\0" + thumbnail.read_bytes()  # a small picture in the head of the large one
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)).save(file, exif=exif)
    whole = file.read_bytes()
    assert head_of(file).size == (99, 99) and not head_of(file).fault
    file.write_bytes(whole + b"\0" * 5000)  # as some cameras write
    assert not head_of(file).fault
    file.write_bytes(whole[:-500])
    assert head_of(file).fault == "cut off"
    Image.fromarray(PIXELS).save(file, "WEBP")
    assert "is WEBP" in head_of(file).fault
    Image.fromarray(PIXELS).save(file, "GIF")
    assert not head_of(file).fault and "cannot be made grey" in head_of(file, channels=1).fault
