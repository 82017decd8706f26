import anndata as ad
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from gdml import pl
from gdml.pl._common import spread


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    pcc = np.sort(rng.uniform(-0.2, 0.8, 60))[::-1] + rng.normal(0, 0.05, (3, 60))
    pcc[:, 7] = np.nan
    genes = np.array([f"GENE{i}" for i in range(60)], dtype=object)
    return ad.AnnData(uns={"gdml": {"evaluate": {"pcc": pcc, "genes": genes}}})


@pytest.fixture
def trained():
    epoch = np.arange(1, 31)
    curves = {
        "epoch": epoch,
        "loss": 6 + np.exp(-epoch / 5),
        "loss_pred": 0.2 + np.exp(-epoch / 5),
        "loss_instance": 3 + np.exp(-epoch / 9),
        "loss_group": np.full(30, np.nan),
        "val_pcc": 0.3 - 0.3 * np.exp(-epoch / 4),
        "val_mse": 0.2 + np.exp(-epoch / 4),
    }
    return ad.AnnData(uns={"gdml": {"fit": {"history": curves, "best_epoch": 20}}})


def test_genes_are_ranked_and_named(scored):
    ax = pl.gene_scores(scored, n_labels=3)
    mean = np.nanmean(scored.uns["gdml"]["evaluate"]["pcc"][:, np.arange(60) != 7], axis=0)
    points = ax.lines[0].get_ydata()
    np.testing.assert_allclose(points, np.sort(mean)[::-1])
    assert "1 constant, left out" in ax.get_xlabel() and "3 slides" in ax.get_ylabel()
    names = {text.get_text() for text in ax.texts}
    assert len(names) == 7 and f"PCC(A) {mean.mean():.2f}" in names


def test_chosen_genes_are_named(scored):
    names = {text.get_text() for text in pl.gene_scores(scored, genes=["GENE3", "GENE50"]).texts}
    assert {"GENE3", "GENE50"} < names and len(names) == 3
    with pytest.raises(KeyError, match="'GENE7', which has no correlation"):
        pl.gene_scores(scored, genes=["GENE7"])


def test_names_overlap_neither_each_other_nor_the_points(scored):
    figure = pl.gene_scores(scored, n_labels=10, return_fig=True)
    figure.canvas.draw()
    (ax,) = figure.axes
    boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the leader line
    points = ax.transData.transform(np.column_stack(ax.lines[0].get_data()))
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not box.count_contains(points)


def test_gene_scores_return_values_and_errors(scored):
    import matplotlib.pyplot as plt

    figure, own = plt.subplots()
    assert pl.gene_scores(scored, ax=own) is own
    assert pl.gene_scores(scored, ax=own, return_fig=True) is figure
    with pytest.raises(KeyError, match="gdml.tl.evaluate"):
        pl.gene_scores(scored, key="other")
    with pytest.raises(TypeError, match="`n_labels` must be a whole number .*found '6'"):
        pl.gene_scores(scored, n_labels="6")
    scored.uns["gdml"]["evaluate"]["pcc"][:] = np.nan
    with pytest.raises(ValueError, match="all are constant"):
        pl.gene_scores(scored)


def test_history_of_an_adata_a_model_and_a_dict(trained):
    class Model:
        history = trained.uns["gdml"]["fit"]["history"]
        best_epoch = 20

    for source in (trained, Model(), trained.uns["gdml"]["fit"]):
        axes = pl.history(source)
        assert [type(ax) for ax in axes] == [Axes] * 3
        assert [t.get_text() for t in axes[0].texts] == ["total", "prediction", "instance"]  # group: nothing recorded
        assert axes[0].get_yscale() == "log"
        assert axes[1].get_title(loc="right").endswith("at epoch 20")
        np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), Model.history["val_pcc"])
    only = pl.history({"loss": [3.0, 2.0, 1.5]})
    assert len(only) == 1 and list(only[0].lines[0].get_xdata()) == [1, 2, 3]
    assert isinstance(pl.history(trained, return_fig=True), Figure)


def test_history_refuses(trained):
    for nothing in (ad.AnnData(), object(), {"epoch": [1.0, 2.0]}):
        with pytest.raises(KeyError, match="gdml.tl.fit"):
            pl.history(nothing)
    with pytest.raises(ValueError, match="`ax` holds 1 axes, but 3"):
        import matplotlib.pyplot as plt

        pl.history(trained, ax=plt.subplots()[1])


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10, width=16), max_size=12), st.floats(0.01, 0.5))
def test_spread_keeps_order_gap_and_limits(values, gap):
    got = spread(values, gap, -20, 20)
    order = np.argsort(values, kind="stable")
    assert (np.diff(got[order]) >= gap - 1e-9).all()
    assert ((got >= -20) & (got <= 20)).all()
    if len(values) and (np.diff(np.sort(values)) >= gap).all():
        np.testing.assert_allclose(got, values, atol=1e-9)


def test_picture_of_gene_scores(scored, looks_the_same):
    looks_the_same(pl.gene_scores(scored, return_fig=True), "gene_scores")


def test_picture_of_history(trained, looks_the_same):
    looks_the_same(pl.history(trained, return_fig=True), "history")


def test_pl_loads_no_torch():
    import subprocess
    import sys

    code = "import sys; from gdml.pl import ablation, benchmark, embedding, gene_scores, history, spatial_pred; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
