"""Every name that gdml reads from or writes into an AnnData, once.

``key_added`` replaces ``gdml`` throughout, as in scanpy: build the names with the functions below.
"""

KEY = "gdml"

SPATIAL = "spatial"  # obsm: spot centres (x, y), full-resolution px; uns: Visium layout
LIBRARY = "library_id"  # obs: slide of each spot
ARRAY_ROW = "array_row"  # obs: grid row of each spot
ARRAY_COL = "array_col"  # obs: grid column of each spot
TISSUE_FRACTION = "tissue_fraction"  # obs: share of tissue in a tile of a slide without spots

IMAGE_PATH = "source_image_path"  # uns[spatial][library]["metadata"]: full-resolution image
SPOT_PITCH = "spot_pitch_um"  # uns[spatial][library]["metadata"]: centre to centre distance, um

# parts of uns[key]
TISSUE = "tissue"
TILES = "tiles"
FEATURES = "features"
NORMALIZATION = "normalization"
FIT = "fit"
PREDICT = "predict"
EVALUATE = "evaluate"
GENES = "genes"  # of uns[key][PREDICT]: DataFrame, what predictions of each gene are worth


def embedding(name: str) -> str:
    """Obsm: pooled embedding of the encoder ``name``, or of the shared space (``name="gdml"``)."""
    return f"X_{name}"


def expression_embedding(key: str = KEY) -> str:
    """Obsm: embedding of the measured expression in the shared space."""
    return f"X_{key}_expression"


def bound(which: str, key: str = KEY) -> str:
    """Obsm: DataFrame, layers: one end of the interval of each prediction, ``which`` one of low, high."""
    return f"{key}_{which}"


def of_model(label: str, key: str = KEY) -> str:
    """Obsm, layers, uns: predictions of one of several models."""
    return f"{key}_{label}".replace("/", "_")


def measured(key: str = KEY) -> str:
    """Obsm: DataFrame, normalised measured expression of the panel genes, which models learn."""
    return f"{key}_measured"


def evaluated(key: str = KEY) -> str:
    """Obsm: DataFrame, measured expression on the scale of the predictions, as they were scored."""
    return f"{key}_evaluated"


def neighbor_mask(key: str = KEY) -> str:
    """Obsm: bool, n_obs x n_neighbors, True where the neighbour tile lies inside the image."""
    return f"{key}_neighbor_mask"


def centers(key: str = KEY) -> str:
    """Obsm of the table of a SpatialData: spot centres, px of the image, where ``spatial`` holds other coordinates."""
    return f"{key}_spatial"


def panel(key: str = KEY) -> str:
    """Var: bool, the modelled genes."""
    return f"{key}_panel"


def unfamiliar(key: str = KEY) -> str:
    """Obs: float32, 0 to 1, share of the held-out training spots of a model that are less unusual than a spot."""
    return f"{key}_ood"


def score(metric: str, key: str = KEY) -> str:
    """Var: per-gene score, ``metric`` one of pcc, attainable, mse, mae, spread, coverage, pcc_expected, warrant."""
    return f"{key}_{metric}"
