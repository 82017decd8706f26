"""Files of features in the layouts of other programs, as these write them."""

import h5py
import numpy as np


def write_trident(
    path, features, corners, *, encoder="uni_v1", side=224, patch=224, mag=20, target=20, size=(2000, 1500), **changes
):
    """As trident.IO.save_h5 writes what WSI.extract_patch_features hands it; a change to None leaves an attribute out."""
    about = {
        "patch_size": patch,
        "patch_size_level0": side,
        "level0_magnification": mag,
        "target_magnification": target,
        "overlap": 0,
        "name": path.stem,
        "savetodir": "job",
        "level0_width": size[0],
        "level0_height": size[1],
        **changes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    attributes = {"features": {"name": path.stem, "savetodir": "job", "encoder": encoder}, "coords": about}
    with h5py.File(path, "w") as file:
        for key, value in (("features", np.asarray(features)), ("coords", np.asarray(corners))):
            chunks = None if 0 in value.shape else (1, *value.shape[1:])
            made = file.create_dataset(
                key, data=value, chunks=chunks, maxshape=(None, *value.shape[1:]) if chunks else None
            )
            for name, attribute in attributes[key].items():
                if attribute is not None:
                    made.attrs[name] = attribute
    return path


def write_wsidata(
    path, features, corners, *, side=224, patch=224, mpp=0.5, slide_mpp=0.5, size=(2000, 1500), spec=None
):
    """As wsidata.io.add_tiles, add_features and WSIData.write do; ``features`` by encoder."""
    import anndata as ad
    import geopandas as gpd
    import pandas as pd
    import spatialdata
    from shapely import box

    corners = np.asarray(corners)
    n = len(corners)
    tiles = gpd.GeoDataFrame(
        {
            "tile_id": np.arange(n),
            "x": corners[:, 0],
            "y": corners[:, 1],
            "tissue_id": 0,
            "geometry": [box(x, y, x + side, y + side) for x, y in corners],
        }
    )
    sdata = spatialdata.SpatialData(shapes={"tiles": spatialdata.models.ShapesModel.parse(tiles)})
    for encoder, values in features.items():
        obs = pd.DataFrame(
            {"tile_id": np.arange(n), "library_id": pd.Categorical(["tiles"] * n)}, index=np.arange(n).astype(str)
        )
        table = ad.AnnData(np.asarray(values), obs=obs)
        sdata[f"{encoder}_tiles"] = spatialdata.models.TableModel.parse(
            table, region="tiles", region_key="library_id", instance_key="tile_id"
        )
    about = {
        "height": patch,
        "width": patch,
        "stride_height": patch,
        "stride_width": patch,
        "mpp": mpp,
        "base_level": 0,
    }
    sdata.attrs["tile_spec"] = {"tiles": about} if spec is None else spec
    sdata.attrs["slide_properties"] = {"shape": [size[1], size[0]], "mpp": slide_mpp, "n_level": 1}
    sdata.write(path)
    return path
