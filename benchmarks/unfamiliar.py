"""Which slides a model says that it does not know.

    python benchmarks/unfamiliar.py                             # slides that a model does not know
    python benchmarks/unfamiliar.py --encoder vit-tiny-random   # the same with features of a vision transformer
    python benchmarks/unfamiliar.py --leaks                     # how alike sections of one patient are, and of two

Ridge regression on pooled features: stain statistics, or the ViT of ``real_sections.py``, whose weights are random. False
alarms: sections of the development set that were left out, and thirds of the left half of visium_colon (margins as in
``learner.py``). Hits: slides of other tissues, and C4 after something was done to it. Predictions are not scored; of the
mouse bulb the images alone are used.
"""

import argparse
import warnings
from functools import partial
from itertools import combinations

import numpy as np
from learner import parts, read_mob
from PIL import Image, ImageDraw
from real_sections import yardstick_encoder
from scipy.ndimage import gaussian_filter
from skimage.color import hed2rgb, hsv2rgb, rgb2hed, rgb2hsv

import gdml
from gdml.spots.data import spot_data
from gdml.spots.leaks import likeness
from gdml.spots.resolve import Spots

SECTIONS = ["B4", "C2", "C3", "C4"]
#: What makes the features, by name: an encoder, and the precision it computes in.
ENCODERS = {"stain": (lambda: "stain", "auto"), "vit-tiny-random": (yardstick_encoder, "fp32")}
PEN_UM, N_STROKES = 300, 4


def by_rows(image, change, step=512):
    """Apply a change of colours to an image, some rows at a time."""
    found = np.empty_like(image)
    for start in range(0, len(image), step):
        part = np.clip(change(image[start : start + step]), 0, 1)
        found[start : start + step] = (part * 255).round()
    return found


def hue(image, turn):
    """Turn the hue by a share of the circle."""

    def change(part):
        hsv = rgb2hsv(part)
        hsv[..., 0] = (hsv[..., 0] + turn) % 1
        return hsv2rgb(hsv)

    return by_rows(image, change)


def stains(image, *, order=(0, 1, 2), times=(1, 1, 1)):
    """Exchange haematoxylin and eosin, or change their strength."""
    return by_rows(image, lambda part: hed2rgb(rgb2hed(part)[..., list(order)] * np.array(times)))


def pen(image, um_per_px):
    """Draw blue strokes across a slide: the image, and where they are."""
    height, width = image.shape[:2]
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    for k in range(N_STROKES):
        y = height * (k + 1) / (N_STROKES + 1)
        draw.line([(0, y - 600), (width, y + 600)], fill=255, width=round(PEN_UM / um_per_px))
    drawn = np.asarray(mask) > 0
    marked = image.copy()
    marked[drawn] = (0.2 * image[drawn] + 0.8 * np.array([30, 50, 160])).astype(np.uint8)
    return marked, drawn


#: What is done to a section, by name.
CHANGES = {
    "hue turned by a tenth": lambda image: hue(image, 0.1),
    "hue turned by a quarter": lambda image: hue(image, 0.25),
    "haematoxylin and eosin exchanged": lambda image: stains(image, order=(1, 0, 2)),
    "stain at half strength": lambda image: stains(image, times=(0.5, 0.5, 0.5)),
    "haematoxylin x 1.5, eosin x 0.6": lambda image: stains(image, times=(1.5, 0.6, 1)),
    "blurred, 4 um": lambda image: gaussian_filter(image, (4 / 0.67, 4 / 0.67, 0)),
    "red and blue exchanged": lambda image: np.ascontiguousarray(image[..., ::-1]),
    "inverted": lambda image: 255 - image,
}


def ready(adata, encoder, *, image=None, um_per_px=None):
    """Tile and embed the spots' own tiles."""
    make, precision = ENCODERS[encoder]
    gdml.pp.tile(adata, n_side=1, image=image, um_per_px=um_per_px)
    options = {} if image is None else {"image": image}
    gdml.pp.embed(adata, make(), tokens="pooled", precision=precision, **options)
    return adata


def fitted(train, group_key=None):
    """Fit ridge regression to some slides."""
    train = train.copy()
    gdml.pp.normalize(train, n_genes=250)
    return gdml.tl.fit(train, "ridge", preset="pooled", group_key=group_key)


def row(what, adata, model):
    """Lines of the table, one for each slide."""
    new = adata.copy()
    gdml.tl.predict(new, model)
    for slide, found in new.uns["gdml"]["predict"]["ood"].iterrows():
        print(
            f"| {what} | {slide} | {found['shift']:.2f} | {found['limit']:.2f} | {found['unusual_spots']:.0%} | "
            f"{'**unlike**' if found['verdict'].startswith('unlike') else 'like'} | {found['features']} |",
            flush=True,
        )
    return new


def alike(adata) -> None:
    """Print how alike slides are, beside the halves of each."""
    spots = Spots.resolve(adata)
    found = likeness(spots.counts(), spot_data(spots)[0], spots)
    print("| slides | profiles of expression | difference of features |\n|---|---:|---:|")
    for name, counts, features in zip(found.names, found.least, found.most, strict=True):
        print(f"| halves of {name} | {counts:.3f} | {features:.2f} |")
    for i, j in combinations(range(len(found.names)), 2):
        print(f"| {found.names[i]} and {found.names[j]} | {found.counts[i, j]:.3f} | {found.features[i, j]:.2f} |")
    print("\nAs alike as halves:", found.pairs())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaks", action="store_true")
    parser.add_argument("--encoder", choices=list(ENCODERS), default="stain")
    options = parser.parse_args()
    embed = partial(ready, encoder=options.encoder)
    warnings.filterwarnings("ignore")
    sections = gdml.datasets.her2st(SECTIONS)
    path = sections.uns["spatial"]["C4"]["metadata"]["source_image_path"]
    embed(sections)
    if options.leaks:
        return alike(sections)
    on = lambda *names: sections[sections.obs["library_id"].isin(names)].copy()
    print("| learnt from, and what was predicted | slide | shift | limit | unusual spots | verdict | features |")
    print("|---|---|---:|---:|---:|---|---|")
    for held in SECTIONS:
        rest = [name for name in SECTIONS if name != held]
        row(f"{', '.join(rest)}: left-out section", on(held), fitted(on(*rest), "patient"))
    row("B4: other patient", on("C2", "C3", "C4"), fitted(on("B4")))
    slide = gdml.io.read_visium(gdml.settings.data_dir / "visium_colon")
    x = slide.obsm["spatial"][:, 0]
    left = embed(slide[x < np.median(x)].copy())
    for k, (train, test) in enumerate(parts(left, left.obsm["spatial"][:, 1], 3)):
        row(f"colon, left half: third {k + 1}", test, fitted(train))
    model = fitted(on("B4", "C2", "C3"), "patient")
    row("B4, C2, C3: mouse bulb", embed(read_mob()), model)
    row("B4, C2, C3: mouse colon", left, model)
    bare = gdml.datasets.her2st(["C4"])
    um = float(sections.uns["gdml"]["tiles"]["slides"]["C4"]["um_per_px"])
    for times, what in ((0.5, "half the um per px"), (2, "twice the um per px")):
        row(f"B4, C2, C3: C4 at {what}", embed(bare.copy(), um_per_px=times * um), model)
    with Image.open(path) as opened:
        image = np.asarray(opened.convert("RGB"))
    for what, change in CHANGES.items():
        row(f"B4, C2, C3: C4, {what}", embed(bare.copy(), image={"C4": change(image)}), model)
    marked, drawn = pen(image, um)
    new = row("B4, C2, C3: C4, pen", embed(bare.copy(), image={"C4": marked}), model)
    px = new.obsm["spatial"].round().astype(int)
    side = round(56 / um)
    covered = np.array([drawn[max(y - side, 0) : y + side, max(x - side, 0) : x + side].mean() for x, y in px])
    unusual = new.obs["gdml_ood"].to_numpy() > 0.95
    for what, at in (("more than half under the pen", covered > 0.5), ("without pen", covered == 0)):
        print(f"\nSpots {what}: {unusual[at].mean():.0%} of {at.sum()} unusual", flush=True)


if __name__ == "__main__":
    main()
