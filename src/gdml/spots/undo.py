"""Verbs write everything or nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

from anndata import AnnData


@contextmanager
def all_or_nothing(adata: AnnData, key: str) -> Iterator[None]:
    """Restore ``adata`` if the block raises an error.

    A verb that runs missing steps (tiles, features, normalisation, prediction) lets each of them write; if a later step
    fails, the results of the earlier ones are removed. Features on disk are kept for the next call.

    Parameters
    ----------
    adata
        AnnData that the block writes to.
    key
        Name under which the results are stored.
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
