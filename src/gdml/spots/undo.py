"""All or nothing: an AnnData stays as it was where a verb fails midway."""

from collections.abc import Iterator
from contextlib import contextmanager

from anndata import AnnData


@contextmanager
def all_or_nothing(adata: AnnData, key: str) -> Iterator[None]:
    """Undo what the block wrote to ``adata`` where it fails.

    A verb that runs missing steps (tiles, features, normalisation, prediction) lets each of them write; where a later
    one refuses, the earlier ones must not stay. Features on disk do stay, for the next call.

    Parameters
    ----------
    adata
        What the block writes to.
    key
        Its place in ``uns``.
    """
    stored = adata.uns.get(key)
    ours = None if stored is None else dict(stored)
    obsm, var = dict(adata.obsm), adata.var.copy()
    layer = adata.layers.get(key)
    try:
        yield
    except BaseException:
        if ours is None:
            adata.uns.pop(key, None)
        else:
            adata.uns[key] = ours
        adata.obsm, adata.var = obsm, var
        if layer is not None:
            adata.layers[key] = layer
        else:
            adata.layers.pop(key, None)
        raise
