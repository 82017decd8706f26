"""The full-resolution image of a run: named, found, ambiguous, or of something else."""

import numpy as np
import pytest
from PIL import Image

import gdml
from gdml.io import read_visium


def known_image(adata):
    (entry,) = adata.uns["spatial"].values()
    return entry["metadata"].get("source_image_path")


@pytest.mark.parametrize("place", ["outs", "around", "microscope_image"])
@pytest.mark.parametrize("suffix", ["tif", "jpg", "btf"])
def test_the_image_of_the_run_is_found(run_folder, slide_picture, log, place, suffix):
    run = run_folder()
    folder = {"outs": run.outs, "around": run.outs.parent, "microscope_image": run.outs / "microscope_image"}[place]
    folder.mkdir(exist_ok=True)
    slide_picture().save(folder / f"he.{suffix}", format="TIFF" if suffix == "btf" else None)
    assert known_image(read_visium(run.outs)) == str(folder / f"he.{suffix}")
    assert "known by its size and what it shows" in log.getvalue()


def test_of_two_images_of_one_size_that_of_this_section_is_taken(run_folder, slide_picture):
    run = run_folder()
    slide_picture(1).save(run.outs / "another.tif")
    slide_picture(0).save(run.outs / "this.tif")
    slide_picture(0).transpose(Image.Transpose.ROTATE_180).save(run.outs / "turned.tif")
    assert known_image(read_visium(run.outs)) == str(run.outs / "this.tif")


def test_an_image_that_shows_nothing_does_not_stand_beside_the_one_that_shows_the_section(run_folder, slide_picture):
    run = run_folder()
    slide_picture().save(run.outs / "this.tif")
    Image.new("RGB", slide_picture().size, "white").save(run.outs / "mask.tif")
    assert known_image(read_visium(run.outs)) == str(run.outs / "this.tif")


def test_two_images_of_the_section_are_named_and_none_is_taken(run_folder, slide_picture, log):
    run = run_folder()
    for name in ("a.tif", "b.jpg"):
        slide_picture().save(run.outs / name)
    adata = read_visium(run.outs)
    assert known_image(adata) is None
    assert "a.tif, b.jpg" in log.getvalue() and "name one with image=" in log.getvalue()
    assert known_image(read_visium(run.outs, run.outs / "b.jpg")) == str(run.outs / "b.jpg")


def test_images_of_another_size_and_damaged_ones_are_passed_over(run_folder, slide_picture, log):
    run = run_folder()
    slide_picture(size=(340, 250)).save(run.outs / "larger.tif")
    slide_picture(size=(165, 125)).save(run.outs / "tissue_hires_copy.png")
    slide_picture().save(run.outs / "cut.jpg", quality=95)
    (run.outs / "cut.jpg").write_bytes((run.outs / "cut.jpg").read_bytes()[:3000])
    (run.outs / "notes.tif").write_text("no image")
    assert known_image(read_visium(run.outs)) is None
    assert "no full-resolution image found" in log.getvalue()


def test_where_nothing_is_to_be_seen_the_size_alone_decides(run_folder, slide_picture, log):
    run = run_folder()
    for name, side in (("hires", (165, 125)), ("lowres", (66, 50))):  # black, as some viewers export it
        Image.new("RGB", side).save(run.spatial / f"tissue_{name}_image.png")
    slide_picture().save(run.outs / "he.tif")
    assert known_image(read_visium(run.outs)) == str(run.outs / "he.tif")
    assert "known by its size." in log.getvalue()
    slide_picture(1).save(run.outs / "another.tif")
    assert known_image(read_visium(run.outs)) is None


def test_without_a_downscaled_image_none_is_searched(run_folder, slide_picture, log):
    run = run_folder(images=())
    slide_picture().save(run.outs / "he.tif")
    assert known_image(read_visium(run.outs)) is None
    assert "has no downscaled image" in log.getvalue()
    assert known_image(read_visium(run.outs, run.outs / "he.tif")) == str(run.outs / "he.tif")


def test_without_a_downscaled_image_the_spots_must_lie_in_the_one_named(run_folder, slide_picture):
    run = run_folder(images=())
    slide_picture(size=(200, 250)).save(run.outs / "he.tif")
    with pytest.raises(
        ValueError, match=r"has 200 x 250 px, but \d+ of 64 spots lie outside it \(up to x 275, y 212 px"
    ):
        read_visium(run.outs, run.outs / "he.tif")


def test_the_lowres_image_serves_where_hires_is_missing(run_folder, slide_picture):
    run = run_folder(images=("lowres",))
    slide_picture().save(run.outs / "he.tif")
    slide_picture(1).save(run.outs / "another.tif")
    assert known_image(read_visium(run.outs)) == str(run.outs / "he.tif")


def test_the_hires_image_in_place_of_the_full_one_is_refused_with_the_sizes(run_folder):
    run = run_folder()
    with pytest.raises(
        ValueError, match=r"165 x 125 px, but the hires image .* was made from one of about 330 x 250 px"
    ):
        read_visium(run.outs, run.spatial / "tissue_hires_image.png")


def test_the_cytassist_image_is_refused_where_there_is_a_microscope_image(run_folder, slide_picture):
    run = run_folder()
    slide_picture(size=(300, 300)).save(run.spatial / "cytassist_image.tiff")
    assert known_image(read_visium(run.outs)) is None
    with pytest.raises(ValueError, match="has 300 x 300 px.*CytAssist image"):
        read_visium(run.outs, run.spatial / "cytassist_image.tiff")


def test_the_cytassist_image_is_taken_by_name_where_it_is_the_only_one(run_folder, slide_picture):
    run = run_folder()
    slide_picture().save(run.spatial / "cytassist_image.tiff")  # Space Ranger ran without --image: hires was made of it
    assert known_image(read_visium(run.outs)) is None
    named = read_visium(run.outs, run.spatial / "cytassist_image.tiff")
    assert known_image(named) == str(run.spatial / "cytassist_image.tiff")


@pytest.mark.parametrize("wrong", ["another section", "turned"])
def test_an_image_of_the_right_size_that_shows_something_else_is_refused(run_folder, slide_picture, tmp_path, wrong):
    run = run_folder()
    other = slide_picture(1) if wrong == "another section" else slide_picture().transpose(Image.Transpose.ROTATE_180)
    other.save(tmp_path / "other.tif")
    with pytest.raises(ValueError, match="has the size of the run's image .* but shows something else"):
        read_visium(run.outs, tmp_path / "other.tif")
    adata = read_visium(run.outs)  # the call that the message names
    with pytest.warns(UserWarning, match="too few pixels"):
        gdml.pp.tile(adata, tile_um=50, image=tmp_path / "other.tif")


def test_a_named_image_that_is_missing_or_none_is_refused(run_folder):
    run = run_folder()
    with pytest.raises(FileNotFoundError, match=r"he\.tif' does not exist"):
        read_visium(run.outs, run.outs / "he.tif")
    with pytest.raises(ValueError, match="cannot be opened"):
        read_visium(run.outs, run.spatial / "scalefactors_json.json")
    with pytest.raises(TypeError, match="`image` must be the path of the full-resolution image, found ndarray"):
        read_visium(run.outs, np.zeros((250, 330, 3), np.uint8))
