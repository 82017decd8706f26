"""Predict expression on many slides."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from gdml._errors import check_count, check_number, check_switch, count, some
from gdml._progress import bar, tell
from gdml._settings import settings
from gdml.corpus.folder import Folder, open_folder
from gdml.corpus.job import Job
from gdml.corpus.manifest import Item, read_manifest, take_shard
from gdml.corpus.outlines import outlines_of
from gdml.corpus.run import run_here, start, tidy
from gdml.corpus.states import DONE, FAILED, State
from gdml.corpus.table import tabulate, write_table
from gdml.corpus.tasks import check_client
from gdml.encoders.device import use_bf16
from gdml.pp.workers import settled_precision
from gdml.spots.lattice import check_lattice

from ._bounds import ask_model
from ._devices import device_names
from ._features import model_encoder
from ._model import IN_MEMORY, as_model
from ._predict_slide import Options, predict_slide
from ._unfamiliar import say_of_many, warn_of_unlike

if TYPE_CHECKING:
    from os import PathLike

    from distributed import Client

    from gdml.encoders.device import Precision
    from gdml.slides.lattice import Layout
    from gdml.training import TrainedModel

_COLUMNS = ["n_tiles", "verdict", "unusual_spots"]


def predict_slides(
    slides: "str | PathLike[str] | pd.DataFrame | Sequence[str | PathLike[str]]",
    model: "TrainedModel | str | PathLike[str]",
    out: "str | PathLike[str]",
    *,
    client: "Client | None" = None,
    shard: str | None = None,
    devices: str | Sequence[str] | None = None,
    spacing_um: float | None = None,
    layout: "Layout" = "square",
    tissue: bool | str = True,
    min_tissue: float = 0.25,
    encoder: str | None = None,
    precision: "Precision" = "auto",
    batch_size: int = 512,
    clip: bool = True,
    interval: float | None = None,
    interval_for: str | None = None,
    threads: int = 1,
    keep_features: bool = False,
    takeover_s: float = 180.0,
) -> pd.DataFrame:
    """Predict the expression of a model's panel genes on the tissue of many slides that have only an H&E image.

    Each slide is predicted as by :func:`gdml.tl.predict` and written to ``out``. A slide that fails leaves the others
    alone. Called again, it does what is missing or failed, and slides whose file, scale or group have changed. Several
    callers, in processes or on machines that share a file system, may work on one ``out``: no slide is done twice, and
    what a dead process left is taken over. The call returns when every slide is done or has failed.

    Parameters
    ----------
    slides
        Manifest: a CSV or TSV file, or a DataFrame, with the columns ``path`` and, optionally, ``name`` (by default
        the file's name without its last suffix), ``group`` (such as the patient; written to ``obs["group"]``) and
        ``um_per_px`` (an empty cell: the image says so itself). Or a list of paths, a folder, or a pattern such as
        ``"slides/*.svs"``. Relative paths in a file are relative to it.
    model
        A model from :func:`gdml.tl.fit`, which is saved to ``out/model``, or the folder of a saved model.
    out
        Folder of the results. One that holds results of another model or other options is refused.
    client
        A :class:`distributed.Client`: slides are tasks of its cluster, one at a time on each worker. Workers must see
        the slides, the model and ``out`` under the same paths. Start one worker for each GPU.
    shard
        ``"3/16"``: the third of sixteen equal parts of the manifest, for jobs that are started side by side.
    devices
        Devices as in :func:`gdml.tl.fit`; with several, such as ``["cuda:0", "cuda:1"]`` or ``["cpu"] * 8``, each has a
        process of its own. None: all CUDA devices, else the best. With ``client`` at most one, which each worker uses.
    spacing_um, layout, min_tissue
        As in :func:`gdml.pp.grid`.
    tissue
        True detects the tissue; False takes whole images; a text with ``{name}``, such as ``"outlines/{name}.geojson"``,
        is the path of the GeoJSON file of each slide.
    encoder
        Name of the model's encoder, if it is one that was registered with :func:`gdml.encoders.register`.
    precision
        As in :func:`gdml.tl.fit`.
    batch_size
        Number of tiles per batch of the model.
    clip
        Set predictions below 0 to 0, as in :func:`gdml.tl.predict`.
    interval, interval_for
        Level of prediction intervals, and what they are for, as in :func:`gdml.tl.predict`.
    threads
        Threads that torch computes with on the CPU. Fixed, so that results do not depend on the machine; use several
        processes to use several cores.
    keep_features
        Write new features to ``gdml.settings.cache_dir`` and keep them. By default they are removed when the slide is
        done. Features that are in the cache are used in any case.
    takeover_s
        Seconds without a sign of life after which a process on another machine counts as dead, and its slide is taken
        over; dead processes of the same machine are known at once.

    Returns
    -------
    A row for each slide of this call: ``name``, ``path``, ``state`` (``"done"`` or ``"failed"``), ``n_tiles``; ``verdict``
    (``"unlike the training slides"`` or ``"like the training slides"``) and ``unusual_spots``, the share of spots that are
    more unusual than 95 % of held-out training spots, as in ``uns["gdml"]["predict"]["ood"]`` of :func:`gdml.tl.predict`
    (empty and NaN of failed slides, and where the model cannot tell); ``seconds``, ``reason`` of a failure, ``result``
    (path; empty unless done). Writes:

    ``{out}/{name}.zarr``
        The AnnData of each slide, see :func:`gdml.tl.predict`; read it with :func:`anndata.read_zarr`.
    ``{out}/state/{name}.json``
        ``state`` of each slide (``"queued"``, ``"running"``, ``"done"``, ``"failed"``), ``by`` whom and ``since`` when,
        ``reason`` and ``traceback`` of a failure.
    ``{out}/slides.csv``
        The table of all slides that were ever given with this ``out``.
    ``{out}/gdml.json``
        What all results depend on.

    Raises
    ------
    FileNotFoundError
        If the manifest, slides, outlines or the model do not exist.
    FileExistsError
        If ``out`` is a file, or holds files that are not gdml's.
    ValueError
        If the manifest has problems, which are listed; if ``out`` holds results of another model or other options, or
        an argument is not valid; if workers of ``client`` differ in precision or in their version of gdml.
    TypeError
        If an argument is of another kind.
    OSError
        If ``out`` cannot be written to, or workers do not see the files.
    ConnectionError
        If the scheduler of ``client`` goes away. What is done is kept; call again with a new client.

    Warns
    -----
    UserWarning
        If slides are among the model's training slides, or unlike anything that it has learnt from.

    See Also
    --------
    gdml.tl.predict : One slide, or spots.

    Examples
    --------
    >>> import gdml
    >>> table = gdml.tl.predict_slides("slides.csv", "her2st-gdml", out="predicted")  # doctest: +SKIP
    >>> table[table["state"] == "failed"]  # doctest: +SKIP
    >>> table.sort_values("unusual_spots", ascending=False).head()  # doctest: +SKIP
    """
    check_number("takeover_s", takeover_s, above=0)
    check_count("threads", threads)
    check_count("batch_size", batch_size)
    check_switch("clip", clip)
    check_lattice(spacing_um, layout, min_tissue)
    use_bf16(torch.device("cpu"), precision)  # refuses other words on any machine
    items = take_shard(read_manifest(slides), shard)
    outlines = outlines_of(tissue, items)
    if client is not None:
        check_client(client)
    used = device_names(devices, client)
    settled = precision if client is None else settled_precision(client, used[0], precision)
    trained = as_model(model)
    ask_model(trained, interval, interval_for)  # refuses what the model cannot promise
    identity = model_encoder(trained, encoder).identity
    options = Options(
        model="",
        weights=_digest(trained),
        named=trained.path or IN_MEMORY,
        encoder=encoder,
        spacing_um=spacing_um,
        layout=layout,
        tissue=outlines,
        min_tissue=min_tissue,
        precision=precision,
        batch_size=batch_size,
        clip=clip,
        threads=threads,
        device=used[0],
        cache_dir=str(settings.cache_dir.absolute()),
        keep_features=keep_features,
        interval=interval,
        interval_for=interval_for,
    )
    folder = open_folder(out, "predictions", _about(trained, options, identity), suffix=".zarr")
    options = replace(options, model=_saved(trained, model, folder))
    options = replace(options, precision=settled)
    jobs = [Job(folder, partial(predict_slide, options=replace(options, device=one)), takeover_s) for one in used]
    states = _run(jobs, items, client)
    table = tabulate(folder, [states[item.name] for item in items], _COLUMNS).fillna({"verdict": ""})
    table = table.astype({"n_tiles": "Int64", "unusual_spots": float})
    _tell(table, states, folder)
    return table


def _run(jobs: list[Job], items: list[Item], client: "Client | None") -> Mapping[str, State]:
    """Do the slides with the engine that was asked for, and tidy up."""
    engine: Callable[..., dict[str, State]]
    if client is not None:
        from gdml.corpus.cluster import run_with_dask

        engine = partial(run_with_dask, client, jobs[0])
    elif len(jobs) > 1:
        from gdml.corpus.processes import run_in_processes

        engine = partial(run_in_processes, jobs)
    else:
        engine = partial(run_here, jobs[0])
    seen = start(jobs[0], items)
    with bar(len(items), desc="predict slides", unit="slide") as progress:
        states = engine(items, seen, lambda state: progress.update())
    tidy(jobs[0])
    return states


def _digest(trained: "TrainedModel") -> str:
    from gdml.training.trained import weights_digest

    return weights_digest(trained.module)


def _about(trained: "TrainedModel", options: Options, encoder: str) -> dict[str, Any]:
    """Name everything that all results depend on."""
    about: dict[str, Any] = {
        "model": trained.name,
        "weights": options.weights,
        "provenance": trained.provenance,
        "encoder": encoder,
        "spacing_um": options.spacing_um,
        "layout": options.layout,
        "tissue": options.tissue,
        "min_tissue": options.min_tissue,
        "precision": options.precision,
        "batch_size": options.batch_size,
        "clip": options.clip,
        "threads": options.threads,
    }
    if options.interval is not None:  # folders of earlier versions can be continued
        about |= {"interval": options.interval, "interval_for": options.interval_for}
    return about


def _saved(trained: "TrainedModel", model: Any, folder: Folder) -> str:
    """Folder of the model, where other processes find it."""
    if isinstance(model, str | os.PathLike):
        return os.path.abspath(os.path.expanduser(model))
    path, before = folder.path / "model", trained.path
    if not path.exists():
        try:
            trained.save(path)
        except OSError:
            if not path.exists():  # else another caller has saved the same model
                raise
        trained.path = before
    return str(path)


def _tell(table: pd.DataFrame, states: Mapping[str, State], folder: Folder) -> None:
    """Write the table of the folder, and say what became of the slides."""
    try:
        write_table(folder, _COLUMNS)
        place = f"table in {str(folder.table)!r}"
    except OSError as error:
        place = f"{str(folder.table)!r} cannot be written ({error.strerror}), the table is returned alone"
    failed = table[table["state"] == FAILED]
    reasons = [f"{name} ({reason[:100]})" for name, reason in zip(failed["name"], failed["reason"], strict=True)]
    told = f"; {count(len(failed), 'slide')} failed: {some(reasons, 3)}; call again to try once more" if reasons else ""
    n_done = int((table["state"] == DONE).sum())
    tell(f"predict_slides: {count(n_done, 'slide')} of {len(table)} done{told}; {place}{say_of_many(table)}")
    seen = [state.name for state in states.values() if state.record.get("in_training")]
    if seen:
        warnings.warn(
            f"The model was trained on {count(len(seen), 'slide')} of these ({some(seen)}): predictions there say nothing "
            "about new slides.",
            UserWarning,
            stacklevel=3,
        )
    warn_of_unlike({s.name: s.record["unlike"] for s in states.values() if s.record.get("unlike")}, stacklevel=3)
